//! How rows that an older VMAN wrote are brought up to this build's schemas.
//!
//! Owns: the ways up ([`Schemas`]), the survey of a store, the order backup, then one commit. Must not: touch a store
//! with a newer row, or write a row without a backup.
//!
//! | killed | what the next start finds |
//! |---|---|
//! | during the backup | an old store, perhaps a half-made copy under another name: all begins anew |
//! | between backup and commit | an old store: the backup is made again |
//! | in the commit | all rows old, or all rows new |
//!
//! So a store is never half one thing: the oldest event tells of all others, and a start reads no event for this.
//! A released schema's struct stays where its golden bytes are; its step up is a line in [`STEPS`].

use super::{
    codec::{DecodeError, Kind, seal, unseal},
    load::StoreLoadError,
};
use crate::ports::{LoadError, Row, Storage, Table};
use std::collections::BTreeMap;

/// What the name of the backup adds to that of the store.
pub const BACKUP_SUFFIX: &str = ".before-upgrade";

/// One kind's way from a schema to the next.
pub struct Step {
    /// What is brought up.
    pub kind: Kind,
    /// From this schema to the one after it.
    pub from: u16,
    /// A payload of that schema as one of the next.
    pub convert: fn(&[u8]) -> Result<Vec<u8>, String>,
}

/// The steps of this build: none, as there is one released schema.
const STEPS: &[Step] = &[];

/// The ways up that are known.
pub struct Schemas {
    steps: &'static [Step],
}

impl Schemas {
    /// Those of this build.
    pub const CURRENT: Schemas = Schemas { steps: STEPS };

    #[cfg(test)]
    pub(super) const fn with(steps: &'static [Step]) -> Self {
        Self { steps }
    }

    fn step(&self, kind: Kind, from: u16) -> Option<&'static Step> {
        self.steps
            .iter()
            .find(|step| step.kind == kind && step.from == from)
    }

    /// What is to be done with a row.
    fn look(&self, kind: Kind, row: &[u8]) -> Looked {
        let (schema, payload) = match unseal(kind, row) {
            Ok(opened) => opened,
            Err(DecodeError::Newer { found, .. }) => return Looked::Newer(found),
            Err(DecodeError::Corrupt(_)) => return Looked::Unreadable,
        };
        let known = kind.schema();
        if schema > known {
            return Looked::Newer(schema);
        }
        if schema == known {
            return Looked::Current;
        }
        let mut payload = payload.to_vec();
        for from in schema..known {
            let next = self
                .step(kind, from)
                .and_then(|step| (step.convert)(&payload).ok());
            let Some(next) = next else {
                return Looked::Unreadable;
            };
            payload = next;
        }
        Looked::Older {
            schema,
            row: seal(kind, known, &payload),
        }
    }
}

enum Looked {
    Current,
    Newer(u16),
    /// Set aside when rows are loaded; the bytes stay.
    Unreadable,
    Older {
        schema: u16,
        /// What it becomes.
        row: Vec<u8>,
    },
}

/// What a store holds, by schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Rows of this build's schemas.
    pub current: usize,
    /// Rows to be brought up, by table and schema.
    pub older: BTreeMap<(&'static str, u16), usize>,
    /// Rows that no build before this one could have written: a table with the schema found and the one known.
    pub newer: Option<(&'static str, u16, u16)>,
    /// Rows that cannot be read and would be set aside, by table.
    pub unreadable: BTreeMap<&'static str, usize>,
}

fn kind_of(table: Table) -> Option<Kind> {
    Some(match table {
        Table::Templates => Kind::Template,
        Table::Vms => Kind::Vm,
        Table::Disks => Kind::Disk,
        Table::Images => Kind::Image,
        Table::Operations => Kind::Operation,
        Table::Events => Kind::Event,
        Table::Idempotency => Kind::Idempotency,
        Table::Leases => Kind::Lease,
        Table::Forwards => Kind::Forward,
        Table::Tokens => Kind::Token,
        Table::Host => Kind::Host,
        Table::Meta => Kind::Meta,
        // Bytes that nobody could read.
        Table::Quarantine => return None,
    })
}

/// Looks at every row, and changes nothing. The storage is open.
pub fn survey(storage: &dyn Storage, schemas: &Schemas) -> Result<Survey, LoadError> {
    let mut survey = Survey::default();
    through(storage, schemas, usize::MAX, |_, _, _| {}, &mut survey)?;
    Ok(survey)
}

/// Goes through the rows, of events through at most so many, and hands on what older ones become.
fn through(
    storage: &dyn Storage,
    schemas: &Schemas,
    events: usize,
    mut brought_up: impl FnMut(Table, Vec<u8>, Vec<u8>),
    survey: &mut Survey,
) -> Result<(), LoadError> {
    for table in Table::ALL {
        let Some(kind) = kind_of(table) else { continue };
        let most = if table == Table::Events {
            events
        } else {
            usize::MAX
        };
        for (key, row) in storage.range(table, &[], most)? {
            match schemas.look(kind, &row) {
                Looked::Current => survey.current += 1,
                Looked::Newer(found) => {
                    survey.newer = Some((table.as_str(), found, kind.schema()));
                }
                Looked::Unreadable => *survey.unreadable.entry(table.as_str()).or_default() += 1,
                Looked::Older { schema, row } => {
                    *survey.older.entry((table.as_str(), schema)).or_default() += 1;
                    brought_up(table, key, row);
                }
            }
        }
    }
    Ok(())
}

/// Brings a store up, if it is to be: a backup first, then all rows in one commit.
pub(super) fn bring_up(storage: &dyn Storage, schemas: &Schemas) -> Result<(), StoreLoadError> {
    let refuse = |survey: &Survey| match survey.newer {
        Some((_, found, known)) => Err(StoreLoadError::Newer { found, known }),
        None => Ok(()),
    };
    let mut first = Survey::default();
    through(storage, schemas, 1, |_, _, _| {}, &mut first)?;
    refuse(&first)?;
    if first.older.is_empty() {
        return Ok(());
    }
    let (mut survey, mut rows) = (Survey::default(), Vec::new());
    let keep = |table, key, value| {
        rows.push(Row {
            table,
            key,
            value: Some(value),
        });
    };
    through(storage, schemas, usize::MAX, keep, &mut survey)?;
    refuse(&survey)?;
    let backup = storage
        .backup(BACKUP_SUFFIX)
        .map_err(StoreLoadError::Backup)?;
    storage.commit(&rows).map_err(StoreLoadError::Migrate)?;
    tracing::info!(
        event = "store.migrated",
        rows = rows.len(),
        backup,
        "the store was brought up to this VMAN's schema"
    );
    Ok(())
}

/// Schemas since the first released one from which no step leads up.
#[cfg(test)]
pub(super) fn missing_steps(schemas: &Schemas) -> Vec<(Kind, u16)> {
    let kinds = Table::ALL.into_iter().filter_map(kind_of);
    let all = kinds.flat_map(|kind| (1..kind.schema()).map(move |from| (kind, from)));
    all.filter(|(kind, from)| schemas.step(*kind, *from).is_none())
        .collect()
}
