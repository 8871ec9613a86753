//! What the process was given from outside, captured once in `main`.
//!
//! Nothing below `main` reads the environment, the working directory or the user id again.

use std::{collections::BTreeMap, path::PathBuf};

/// A snapshot of the process's surroundings.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The environment's variables; a value that is not UTF-8 is kept with replacement characters.
    pub variables: BTreeMap<String, String>,
    /// The working directory, where `.env` is looked for.
    pub working_directory: PathBuf,
    /// The system's configuration directory, `/etc/vman`.
    pub configuration_directory: PathBuf,
    /// The effective user id.
    pub uid: u32,
    /// Processors this process may use, at least 1.
    pub processors: u32,
}

impl Environment {
    /// Reads the surroundings of this process. Only `main` calls it.
    pub fn capture() -> Self {
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        Self {
            variables: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            working_directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            configuration_directory: PathBuf::from("/etc/vman"),
            uid: rustix::process::geteuid().as_raw(),
            processors: std::thread::available_parallelism()
                .ok()
                .and_then(|n| u32::try_from(n.get()).ok())
                .unwrap_or(1),
        }
    }

    /// A variable's value; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The file called `name` on `PATH`, if there is one that may be executed.
    pub fn find_program(&self, name: &str) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let executable = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        // What only root runs as a rule is not on an ordinary user's PATH.
        let path = self.get("PATH")?;
        path.split(':')
            .chain(["/usr/sbin", "/sbin"])
            .filter(|directory| directory.starts_with('/'))
            .map(|directory| PathBuf::from(directory).join(name))
            .find(executable)
    }

    /// `/var/lib/vman` for root, else the XDG state directory; none if the user has no home.
    pub fn default_storage(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(PathBuf::from("/var/lib/vman"));
        }
        self.absolute("XDG_STATE_HOME")
            .or_else(|| self.absolute("HOME").map(|home| home.join(".local/state")))
            .map(|state| state.join("vman"))
    }

    /// `/run/vman` for root, else the XDG runtime directory, else `run` in the state directory:
    /// never a guessable name in a directory that everybody may write to.
    pub fn default_runtime(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(PathBuf::from("/run/vman"));
        }
        self.absolute("XDG_RUNTIME_DIR")
            .map(|runtime| runtime.join("vman"))
            .or_else(|| self.default_storage().map(|state| state.join("run")))
    }

    // The XDG specification says that a relative path is to be ignored.
    fn absolute(&self, name: &str) -> Option<PathBuf> {
        self.get(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    }
}
