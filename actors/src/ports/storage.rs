//! The durable table of rows behind the StateStore. It knows nothing of what
//! the rows mean: keys and values are bytes.
//!
//! All calls block: the store's writer thread makes them, and tasks that read
//! old events.

use vman_model::UnixMs;

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Templates by name.
    Templates,
    /// VMs by id.
    Vms,
    /// Disks by id.
    Disks,
    /// Images by name.
    Images,
    /// Operations by id.
    Operations,
    /// Events by revision, big-endian so that they sort.
    Events,
    /// Idempotency keys.
    Idempotency,
    /// Leases by address.
    Leases,
    /// Forwarded ports by id.
    Forwards,
    /// Bearer tokens by their public part.
    Tokens,
    /// What is durable about the host, one row.
    Host,
    /// The store's own rows (schema, last revision).
    Meta,
    /// Records that could not be read, set aside under `table/key`.
    Quarantine,
}

impl Table {
    /// All tables.
    pub const ALL: [Table; 13] = [
        Table::Templates,
        Table::Vms,
        Table::Disks,
        Table::Images,
        Table::Operations,
        Table::Events,
        Table::Idempotency,
        Table::Leases,
        Table::Forwards,
        Table::Tokens,
        Table::Host,
        Table::Meta,
        Table::Quarantine,
    ];

    /// The table's name on disk.
    pub fn as_str(self) -> &'static str {
        match self {
            Table::Templates => "templates",
            Table::Vms => "vms",
            Table::Disks => "disks",
            Table::Images => "images",
            Table::Operations => "operations",
            Table::Events => "events",
            Table::Idempotency => "idempotency",
            Table::Leases => "leases",
            Table::Forwards => "forwards",
            Table::Tokens => "tokens",
            Table::Host => "host",
            Table::Meta => "meta",
            Table::Quarantine => "quarantine",
        }
    }
}

/// One row to write, or with `value: None` to erase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where.
    pub table: Table,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

/// Rows that become durable together or not at all.
pub type RowBatch = Vec<Row>;

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// A copy of the storage as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCopy {
    /// The file.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// The rows of [`Table::Meta`] in it.
    pub meta: Vec<KeyValue>,
    /// The older copies that were removed for it.
    pub removed: Vec<String>,
}

/// Why a batch was not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The storage is full; certainly nothing was written.
    #[error("the storage is full")]
    NoSpace,
    /// The file system is read-only; certainly nothing was written.
    #[error("the storage is read-only")]
    ReadOnly,
    /// It failed before anything was written, for certain.
    #[error("commit refused: {0}")]
    Refused(String),
    /// It is unknown whether it was written: the storage must be opened and
    /// read again.
    #[error("outcome of the commit is unknown: {0}")]
    Unknown(String),
}

/// Why the rows could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Another process holds the file.
    #[error("the store {path} is held by another process{holder}")]
    Locked {
        /// The file.
        path: String,
        /// ` (pid 123)`, or empty where it is not known.
        holder: String,
    },
    /// The file cannot be read as a store; it was left as it is.
    #[error(
        "the store {path} is corrupt: {error}; it was left untouched: make it again with `vman store rebuild`, or put a backup in its place"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// What was found.
        error: String,
    },
    /// The system refused.
    #[error("cannot read the store {path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: String,
    },
}

/// A durable, transactional table of rows.
pub trait Storage: Send + Sync + 'static {
    /// Opens the file again and forgets what was cached: called at start, and
    /// after an unknown outcome. Creates it safely if it was never there.
    fn open(&self) -> Result<(), LoadError>;
    /// All rows of a table in key order.
    fn load(&self, table: Table) -> Result<Vec<KeyValue>, LoadError>;
    /// The rows of a table from `from` on, at most `limit`, in key order. Reads
    /// a consistent snapshot and never waits for a commit.
    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<KeyValue>, LoadError>;
    /// All rows of these tables as of one moment between two commits, table by
    /// table in key order. Never waits for a commit.
    fn moment(&self, tables: &[Table]) -> Result<Vec<(Table, KeyValue)>, LoadError>;
    /// One row.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LoadError>;
    /// Makes the batch durable.
    fn commit(&self, batch: &[Row]) -> Result<(), CommitError>;
    /// Whether a commit takes its time: then a thread of the store's own makes
    /// them, otherwise a task, in step with all others.
    fn blocks(&self) -> bool {
        true
    }
    /// Makes a durable copy of the file beside it, its name ending in `suffix`; one that is there already is replaced,
    /// whole or not at all. Answers the copy's path. The errors are those of a commit that did not happen.
    fn backup(&self, suffix: &str) -> Result<String, CommitError>;
    /// Makes a durable copy as of one moment, dated `at`, while the storage is in use: commits do not wait for it.
    /// It is whole or not there. Of the copies that were made so, the newest `keep` are kept. The errors are those of a
    /// commit that did not happen.
    fn keep_copy(&self, at: UnixMs, keep: usize) -> Result<KeptCopy, CommitError>;
    /// Bytes of the file, for metrics.
    fn size(&self) -> u64;
}
