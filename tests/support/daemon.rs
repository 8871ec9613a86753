//! A daemon of the test's own.

use super::{
    accel, guest,
    host::{self, Qemu},
    http::{Answer, request},
    wait_for,
};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs::{self, File},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};
use tempfile::TempDir;

/// Long enough for a loaded two-core machine under software emulation.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A daemon on a private storage path, with whatever it has started.
pub struct Daemon {
    folder: TempDir,
    child: Option<Child>,
    variables: Vec<(String, String)>,
    unset: Vec<String>,
    /// The network namespace it runs in.
    namespace: Option<String>,
    /// Whether it lacks the capability to administer networks.
    powerless: bool,
}

impl Daemon {
    /// A daemon that is ready.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with environment variables of its own.
    pub fn start_with(variables: &[(&str, &str)]) -> Self {
        let mut daemon = Self::unstarted(variables);
        daemon.serve();
        daemon
    }

    /// A storage path of its own, and no daemon on it yet.
    pub fn unstarted(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("vman").tempdir().unwrap();
        fs::create_dir(folder.path().join("storage")).unwrap();
        let own = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Self {
            folder,
            child: None,
            variables: own.collect(),
            unset: Vec::new(),
            namespace: None,
            powerless: false,
        }
    }

    /// The daemon is to run in this network namespace.
    pub fn inside(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// The daemon is to run without the capability to administer networks.
    pub fn powerless(mut self) -> Self {
        self.powerless = true;
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn storage(&self) -> PathBuf {
        self.folder.path().join("storage")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/vman.sock")
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(key, _)| key != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Leaves a variable of the test's daemons to the files.
    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(key, _)| key != name);
        self.unset.push(name.to_owned());
    }

    /// Starts the daemon as systemd does, with a socket made for it.
    pub fn hand_over(&mut self, listener: UnixListener) {
        // The shell names its own pid, which the daemon then has.
        let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
        let daemon = self.command();
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(daemon.get_program());
        shell.args(daemon.get_args()).env_clear();
        for (name, value) in daemon.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        let log = File::options()
            .append(true)
            .open(self.folder.path().join("daemon.log"))
            .unwrap();
        shell
            .current_dir(self.folder.path())
            .stdin(OwnedFd::from(listener))
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(shell.spawn().unwrap());
    }

    /// Writes the daemon's configuration file, which is read instead of the host's.
    pub fn configure(&self, text: &str) {
        fs::write(self.folder.path().join("vman.toml"), text).unwrap();
    }

    /// The command that starts this daemon.
    pub fn command(&self) -> Command {
        let vman = env!("CARGO_BIN_EXE_vman");
        let mut command = match &self.namespace {
            None => Command::new(vman),
            Some(namespace) => {
                let mut ip = Command::new("ip");
                // It becomes the daemon: the pid is the same.
                ip.args(["netns", "exec", namespace]);
                if self.powerless {
                    ip.args([
                        "setpriv",
                        "--inh-caps=-net_admin",
                        "--bounding-set=-net_admin",
                    ]);
                }
                ip.arg(vman);
                ip
            }
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("daemon.log"))
            .unwrap();
        command
            .arg("serve")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("VMAN_STORAGE_PATH", self.storage())
            .env("VMAN_RUNTIME_PATH", self.folder.path().join("run"))
            .env("VMAN_LISTEN", "")
            .env("VMAN_ACCEL", accel())
            .env("VMAN_NETWORK_MODE", "user")
            .env("VMAN_LOG_FORMAT", "text")
            .env("VMAN_LOG_LEVEL", "debug")
            .env("RUST_BACKTRACE", "1")
            .envs(self.variables.iter().cloned())
            .current_dir(self.folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        // Only set where coverage is measured.
        if let Some(profile) = std::env::var_os("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", profile);
        }
        for name in &self.unset {
            command.env_remove(name);
        }
        let file = self.folder.path().join("vman.toml");
        if file.exists() {
            command.arg("--config").arg(file);
        }
        command
    }

    /// The command that starts this daemon under another program, which becomes it.
    pub fn command_under(&self, program: &str, words: &[&str]) -> Command {
        let plain = self.command();
        let mut command = Command::new(program);
        command
            .args(words)
            .arg(plain.get_program())
            .arg("serve")
            .env_clear()
            .current_dir(self.folder.path());
        for (name, value) in plain.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let log = File::options()
            .append(true)
            .open(self.folder.path().join("daemon.log"))
            .unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    /// Starts this daemon with limits as prlimit(1) takes them, and waits for it.
    pub fn serve_limited(&mut self, limits: &[&str]) {
        assert!(self.child.is_none(), "one daemon at a time");
        self.child = Some(self.command_under("prlimit", limits).spawn().unwrap());
        self.wait_ready();
    }

    /// Starts the daemon without waiting for it.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "one daemon at a time");
        self.child = Some(self.command().spawn().unwrap());
    }

    /// Starts the daemon and waits until it is ready.
    pub fn serve(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    pub fn wait_ready(&mut self) {
        let socket = self.socket();
        wait_for("the daemon to be ready", PATIENCE, || {
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().unwrap()) {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            let answer = request(&socket, "GET", "/ready", &[], b"").ok()?;
            (answer.status == 200).then_some(())
        });
    }

    /// Waits for a daemon on this path that the test has started itself.
    pub fn until_ready(&self) {
        let socket = self.socket();
        wait_for("the daemon to be ready", PATIENCE, || {
            let answer = request(&socket, "GET", "/ready", &[], b"").ok()?;
            (answer.status == 200).then_some(())
        });
    }

    pub fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a daemon that was started").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a daemon that was started");
        host::signal(child.id(), rustix::process::Signal::TERM);
        wait_for("the daemon to end", PATIENCE, || child.try_wait().unwrap())
    }

    /// Whether the daemon has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut().expect("a daemon that was started");
        child.try_wait().unwrap().is_some()
    }

    /// Waits for the daemon to end by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a daemon that was started");
        wait_for("the daemon to end", PATIENCE, || child.try_wait().unwrap())
    }

    pub fn try_call(&self, method: &str, target: &str, body: &Value) -> std::io::Result<Answer> {
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let accept = ("Accept", "application/json");
        let headers: &[(&str, &str)] = if body.is_null() {
            &[accept]
        } else {
            &[accept, ("Content-Type", "application/json")]
        };
        request(&self.socket(), method, target, headers, &bytes)
    }

    pub fn call(&self, method: &str, target: &str, body: &Value) -> Answer {
        self.try_call(method, target, body).unwrap_or_else(|error| {
            panic!(
                "{method} {target}: {error}; the daemon's log:\n{}",
                self.log()
            )
        })
    }

    pub fn get(&self, target: &str) -> Value {
        self.call("GET", target, &Value::Null).expect(200)
    }

    pub fn post(&self, target: &str, body: &Value) -> Answer {
        self.call("POST", target, body)
    }

    pub fn delete(&self, target: &str) -> Answer {
        self.call("DELETE", target, &Value::Null)
    }

    pub fn vm(&self, id: &str) -> Value {
        self.get(&format!("/vms/{id}"))
    }

    pub fn pid_of(&self, id: &str) -> u32 {
        self.vm(id)["pid"]
            .as_u64()
            .expect("a VM with a process")
            .try_into()
            .unwrap()
    }

    /// Runs an action and waits for its operation; answers the operation.
    pub fn act(&self, id: &str, action: &str) -> Value {
        let (action, query) = action.split_once('?').unwrap_or((action, ""));
        let target = format!("/vms/{id}/actions/{action}?wait_s=60&{query}");
        self.post(&target, &Value::Null).expect(200)
    }

    /// Waits until a VM is in `state`.
    pub fn wait_state(&self, id: &str, state: &str) -> Value {
        wait_for(&format!("VM {id} to be {state}"), PATIENCE, || {
            let vm = self.vm(id);
            (vm["state"] == state).then_some(vm)
        })
    }

    pub fn console(&self, id: &str) -> String {
        self.get(&format!("/vms/{id}/console"))["console"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Waits for a line on the console that holds `text`.
    pub fn wait_console(&self, id: &str, text: &str) -> String {
        wait_for(
            &format!("{text:?} on the console of {id}"),
            PATIENCE * 2,
            || {
                let console = self.console(id);
                console.contains(text).then_some(console)
            },
        )
    }

    /// The last number the guest counted to.
    pub fn counter(&self, id: &str) -> Option<u64> {
        let console = self.console(id);
        // The last line may be in the middle of being written.
        let (whole, _) = console.rsplit_once('\n')?;
        whole.lines().rev().find_map(|line| {
            let (_, number) = line.split_once("VMAN-GUEST counter ")?;
            number.trim().parse().ok()
        })
    }

    /// A template without anything to boot: QEMU runs its firmware.
    pub fn tiny_template(&self) {
        let answer = self.post(
            "/templates",
            &json!({"name": "tiny", "cpu_count": 1, "ram_mib": 32}),
        );
        answer.expect(201);
    }

    /// Makes VMs from the tiny template.
    pub fn tiny_vms(&self, names: &[&str]) {
        self.tiny_template();
        for name in names {
            self.post("/vms", &json!({"template_name": "tiny", "name": name}))
                .expect(201);
        }
    }

    /// Streams a file in as an image.
    pub fn put_image(&self, name: &str, kind: &str, file: &Path) -> Value {
        let bytes = fs::read(file).unwrap();
        let target = format!("/images/{name}?kind={kind}");
        let headers = [("Content-Type", "application/octet-stream")];
        let answer = request(&self.socket(), "PUT", &target, &headers, &bytes).unwrap();
        answer.expect(201)
    }

    /// The template `guest`: Linux with the test's initramfs.
    pub fn guest_template(&self, cmdline: &str) {
        let files = guest();
        self.put_image("vmlinuz", "kernel", &files.join("vmlinuz"));
        self.put_image("initrd", "initrd", &files.join("initrd"));
        let cmdline = format!("console=ttyS0 quiet {cmdline}");
        let boot = json!({"kernel": "vmlinuz", "initrd": "initrd", "cmdline": cmdline});
        let template = json!({"name": "guest", "cpu_count": 1, "ram_mib": 192, "boot": boot});
        self.post("/templates", &template).expect(201);
    }

    /// Where a VM's QEMU keeps a monitor for people.
    pub fn monitor(&self, vm: &str) -> PathBuf {
        self.folder.path().join(format!("run/vms/{vm}/rescue.sock"))
    }

    pub fn qemus(&self) -> Vec<Qemu> {
        host::qemus(self.folder.path())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A process that is killed tells no coverage.
        if std::env::var_os("LLVM_PROFILE_FILE").is_some()
            && self.child.is_some()
            && !std::thread::panicking()
        {
            self.terminate();
        }
        self.kill();
        for qemu in self.qemus() {
            host::signal(qemu.pid, rustix::process::Signal::KILL);
        }
        if std::thread::panicking() {
            self.tell();
        }
    }
}

impl Daemon {
    /// What is known of it, for whoever looks into a test that has failed. Several may be told at
    /// once, so each is told in one piece, under the name of its test.
    fn tell(&self) {
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        let mut told = format!("--- the daemon's log of {test}\n{}", self.log());
        let vms = fs::read_dir(self.storage().join("vms"));
        for vm in vms.into_iter().flatten().flatten() {
            let console = fs::read(vm.path().join("console.log")).unwrap_or_default();
            let name = vm.file_name();
            let said = String::from_utf8_lossy(&console);
            let _ = write!(
                told,
                "--- what VM {} of {test} said\n{said}",
                name.display()
            );
        }
        eprintln!("{told}");
    }
}
