//! `vman upgrade check`: what this binary would do with the store, before it is started on it.
//!
//! Looks at a copy: the store may be held, and written, by the daemon that is to be replaced. Must not: change
//! anything of the store.

use crate::host::{
    dirs::StorageDirs,
    store_redb::{RedbStorage, copy_of_running},
};
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use vman_actors::{
    ports::Storage,
    store::migrate::{BACKUP_SUFFIX, Schemas, Survey, survey},
};

/// What a start of this binary would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It would begin with an empty inventory: there is no store yet.
    NoStore,
    /// It would use the store as it is.
    Ready,
    /// It would make a backup and bring rows up.
    BringsUp,
    /// It would refuse to start.
    Refuses,
}

/// Rows of a table that differ from what this build writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// The table.
    pub table: &'static str,
    /// Their schema; none where they cannot be read.
    pub schema: Option<u16>,
    /// How many.
    pub rows: usize,
}

/// The answer of `vman upgrade check`.
#[derive(Clone, Debug, Serialize)]
pub struct UpgradeReport {
    /// This binary's version.
    pub version: &'static str,
    /// The store that was looked at.
    pub store: PathBuf,
    /// What a start would do.
    pub verdict: Verdict,
    /// The same as a sentence, with what to do.
    pub detail: String,
    /// Rows that would be brought up.
    pub older: Vec<Rows>,
    /// Rows that would be set aside.
    pub unreadable: Vec<Rows>,
    /// Where the backup would be.
    pub backup: PathBuf,
}

impl UpgradeReport {
    /// 0, or 1 where a start would be refused.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.verdict == Verdict::Refuses)
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}: {}", self.store.display(), self.detail)];
        for Rows {
            table,
            schema,
            rows,
        } in self.older.iter().chain(&self.unreadable)
        {
            lines.push(match schema {
                Some(schema) => format!("  {table}: {rows} rows of schema {schema} are brought up"),
                None => format!("  {table}: {rows} rows cannot be read and are set aside"),
            });
        }
        lines
    }
}

/// Looks at the store under a storage path.
pub fn check(storage: &Path) -> UpgradeReport {
    let store = StorageDirs::new(storage).store_file();
    let mut backup = store.clone().into_os_string();
    backup.push(BACKUP_SUFFIX);
    let mut report = UpgradeReport {
        version: env!("CARGO_PKG_VERSION"),
        store: store.clone(),
        verdict: Verdict::NoStore,
        detail: "there is no store yet, a start makes an empty one".to_owned(),
        older: Vec::new(),
        unreadable: Vec::new(),
        backup: backup.into(),
    };
    match look(&store) {
        Ok(None) => {}
        Ok(Some(found)) => judge(&mut report, &found, free_bytes(storage)),
        Err(why) => {
            report.verdict = Verdict::Refuses;
            report.detail = format!("it cannot be looked at: {why}");
        }
    }
    report
}

/// What is in the store, none where there is none.
fn look(store: &Path) -> Result<Option<Survey>, String> {
    let copy = Copy::beside(store);
    match copy_of_running(store, &copy.path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let storage = RedbStorage::new(&copy.path);
    let found = storage
        .open()
        .and_then(|()| survey(&storage, &Schemas::CURRENT));
    found.map(Some).map_err(|error| error.to_string())
}

fn judge(report: &mut UpgradeReport, found: &Survey, free: Option<u64>) {
    report.older = found
        .older
        .iter()
        .map(|((table, schema), rows)| Rows {
            table,
            schema: Some(*schema),
            rows: *rows,
        })
        .collect();
    report.unreadable = found
        .unreadable
        .iter()
        .map(|(table, rows)| Rows {
            table,
            schema: None,
            rows: *rows,
        })
        .collect();
    let size = fs::metadata(&report.store).map_or(0, |file| file.len());
    let backup = report.backup.display();
    (report.verdict, report.detail) = match found.newer {
        Some((table, schema, known)) => (
            Verdict::Refuses,
            format!(
                "it was written by a newer VMAN ({table}: schema {schema}, this build knows {known}), {} would \
                 refuse to start: keep that version, or restore {backup}",
                report.version
            ),
        ),
        None if found.older.is_empty() => (
            Verdict::Ready,
            format!(
                "{} uses it as it is ({} rows)",
                report.version, found.current
            ),
        ),
        // Twice: the backup, and the rows written anew beside the old ones.
        None if free.is_some_and(|free| free < 2 * size) => (
            Verdict::Refuses,
            format!(
                "it has to be brought up, and there is no room for its backup: make {} MiB free first",
                (2 * size).div_ceil(1 << 20)
            ),
        ),
        None => (
            Verdict::BringsUp,
            format!(
                "{} brings it up in one step after a backup to {backup}",
                report.version
            ),
        ),
    };
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A copy that goes when it has been looked at.
pub(super) struct Copy {
    pub(super) path: PathBuf,
}

impl Copy {
    pub(super) fn beside(store: &Path) -> Self {
        Self {
            path: store.with_extension("redb.check"),
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.path.with_extension("check.created"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(found: &Survey, free: u64) -> UpgradeReport {
        let folder = tempfile::tempdir().unwrap();
        let mut report = check(folder.path());
        assert_eq!(report.verdict, Verdict::NoStore, "{}", report.detail);
        fs::write(&report.store, vec![0; 1 << 20]).unwrap();
        judge(&mut report, found, Some(free));
        report
    }

    #[test]
    fn old_rows_are_told_and_whether_there_is_room_for_their_backup() {
        let found = Survey {
            older: [(("vms", 1), 3)].into(),
            unreadable: [("disks", 2)].into(),
            ..Survey::default()
        };
        let report = judged(&found, 3 << 20);
        assert_eq!((report.verdict, report.exit_code()), (Verdict::BringsUp, 0));
        let told = report.lines().join("\n");
        for line in [
            "vman.redb.before-upgrade",
            "vms: 3 rows of schema 1 are brought up",
            "disks: 2 rows cannot be read",
        ] {
            assert!(told.contains(line), "{told}");
        }
        let report = judged(&found, 1 << 20);
        assert_eq!((report.verdict, report.exit_code()), (Verdict::Refuses, 1));
        assert!(
            report.detail.contains("make 2 MiB free"),
            "{}",
            report.detail
        );
    }

    #[test]
    fn a_newer_store_is_refused_with_what_to_do() {
        let found = Survey {
            newer: Some(("vms", 2, 1)),
            ..Survey::default()
        };
        let report = judged(&found, u64::MAX);
        assert_eq!(report.exit_code(), 1);
        assert!(
            report.detail.contains("keep that version"),
            "{}",
            report.detail
        );
    }

    #[test]
    fn what_is_no_store_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("vman.redb");
        fs::write(&store, b"no store").unwrap();
        let report = check(folder.path());
        assert_eq!(report.verdict, Verdict::Refuses);
        assert_eq!(fs::read(&store).unwrap(), b"no store");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
