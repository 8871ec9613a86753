//! What the configuration promises: layers, provenance, and one clear message for each mistake.

use super::{keys::KEYS, *};
use std::fs;
use std::net::Ipv4Addr;

/// A host of its own: an empty `/etc/vman`, an empty working directory, an ordinary user with a home.
struct Place {
    directory: tempfile::TempDir,
    environment: Environment,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work");
    let etc = directory.path().join("etc");
    fs::create_dir_all(etc.join("conf.d")).unwrap();
    fs::create_dir(&work).unwrap();
    let variables = [("HOME", "/home/ada"), ("XDG_RUNTIME_DIR", "/run/user/1000")];
    let environment = Environment {
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        working_directory: work,
        configuration_directory: etc,
        uid: 1000,
        processors: 4,
    };
    Place {
        directory,
        environment,
    }
}

impl Place {
    fn etc(self, file: &str, text: &str) -> Self {
        fs::write(self.environment.configuration_directory.join(file), text).unwrap();
        self
    }

    fn dotenv(self, text: &str) -> Self {
        fs::write(self.environment.working_directory.join(".env"), text).unwrap();
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        let variables = &mut self.environment.variables;
        variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn load(&self, flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let flag = |(name, value): &(&str, &str)| {
            let flag = format!("--{}", name.replace('_', "-"));
            ((*name).to_owned(), (*value).to_owned(), flag)
        };
        let overrides = Overrides {
            file: None,
            values: flags.iter().map(flag).collect(),
        };
        Config::load(&overrides, &self.environment)
    }

    /// The only fault.
    fn fault(&self) -> String {
        let faults = self.load(&[]).unwrap_err().faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].to_string()
    }
}

fn from(config: &Config, name: &str) -> (String, String) {
    let found = config.settings.iter().find(|setting| setting.name == name);
    let setting = found.unwrap();
    (setting.value.clone(), setting.source.to_string())
}

#[test]
fn every_key_of_the_table_has_an_effective_value_and_no_other() {
    let config = place().load(&[]).unwrap();
    let settings = config.settings.iter();
    let mut shown: Vec<&str> = settings.map(|setting| &*setting.name).collect();
    let mut known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    shown.sort_unstable();
    known.sort_unstable();
    assert_eq!(shown, known);
    for key in KEYS.iter().filter(|key| !key.default.starts_with('(')) {
        let (value, source) = from(&config, key.name);
        let worked_out = matches!((key.name, key.default), ("max_launches", "auto"))
            || (key.name == "operator_dry_run" && value == "0");
        assert!(worked_out || value == key.default, "{}: {value}", key.name);
        assert_eq!(source, "default");
    }
}

#[test]
fn without_root_the_users_own_directories_are_used() {
    let config = place().load(&[]).unwrap();
    assert_eq!(
        config.storage.path,
        Path::new("/home/ada/.local/state/vman")
    );
    assert_eq!(
        config.http.socket,
        Path::new("/run/user/1000/vman/vman.sock")
    );
    let config = place().with("XDG_RUNTIME_DIR", "").load(&[]).unwrap();
    assert_eq!(
        config.storage.runtime,
        Path::new("/home/ada/.local/state/vman/run")
    );
    let mut root = place();
    root.environment.uid = 0;
    let config = root.load(&[]).unwrap();
    assert_eq!(config.storage.path, Path::new("/var/lib/vman"));
    assert_eq!(config.http.socket, Path::new("/run/vman/vman.sock"));
}

#[test]
fn a_later_layer_wins_and_each_value_knows_its_source() {
    let place = place()
        .etc("vman.toml", "max_vms = 1\nvlan_id = 1\nmax_inflight = 1\nlog_backup_count = 1\nbridge_name = \"b1\"\n")
        .etc("conf.d/10.toml", "\nvlan_id = 2\nmax_inflight = 2\nlog_backup_count = 2\nbridge_name = \"b2\"\n")
        .etc("conf.d/20.toml", "dns = [\"1.1.1.1\", \"9.9.9.9\"]\nlog_backup_count = 3\n")
        .etc("conf.d/30.toml.disabled", "not = toml = at all")
        .dotenv("# a comment\nexport VMAN_MAX_INFLIGHT='4'\nOTHER_THING=5\nVMAN_LOG_BACKUP_COUNT=4\nVMAN_BRIDGE_NAME=b4\n")
        .with("VMAN_LOG_BACKUP_COUNT", "5")
        .with("VMAN_BRIDGE_NAME", "b5");
    let config = place.load(&[("bridge_name", "b6")]).unwrap();
    let etc = place.environment.configuration_directory.display();
    let work = place.environment.working_directory.display();
    let expected = [
        ("max_vms", "1", format!("{etc}/vman.toml:1")),
        ("vlan_id", "2", format!("{etc}/conf.d/10.toml:2")),
        ("dns", "1.1.1.1,9.9.9.9", format!("{etc}/conf.d/20.toml:1")),
        ("max_inflight", "4", format!("{work}/.env:2")),
        (
            "log_backup_count",
            "5",
            "VMAN_LOG_BACKUP_COUNT from the environment".to_owned(),
        ),
        (
            "bridge_name",
            "b6",
            "--bridge-name on the command line".to_owned(),
        ),
    ];
    for (name, value, source) in expected {
        assert_eq!(from(&config, name), (value.to_owned(), source));
    }
}

#[test]
fn a_file_named_by_the_flag_replaces_the_systems_files() {
    let place = place().etc("vman.toml", "max_vms = 1\n");
    let file = place.directory.path().join("mine.toml");
    fs::write(&file, "vlan_id = 7\n").unwrap();
    let overrides = Overrides {
        file: Some(file),
        values: Vec::new(),
    };
    let config = Config::load(&overrides, &place.environment).unwrap();
    assert_eq!(
        (config.limits.max_vms, config.network.networks[0].vlan_id),
        (10_000, Some(7))
    );
    let overrides = Overrides {
        file: Some(PathBuf::from("/nonexistent/vman.toml")),
        values: Vec::new(),
    };
    let error = Config::load(&overrides, &place.environment).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("/nonexistent/vman.toml: cannot be read")
    );
}

#[test]
fn each_wrong_value_is_answered_with_one_message_that_names_it_and_its_source() {
    let long = format!("/{}", "x".repeat(120));
    let wrong = [
        ("STORAGE_PATH", "/a\u{fffd}", "is not valid UTF-8"),
        ("STORAGE_PATH", "relative/path", "must be an absolute path"),
        ("STORAGE_PATH", "/var/lib/../etc", "without `..`"),
        ("RUNTIME_PATH", "", "must be an absolute path"),
        ("LISTEN", "localhost:8000", "must be ADDRESS:PORT"),
        ("LISTEN", "0.0.0.0:8000", "reachable from outside"),
        ("SOCKET", long.as_str(), "a UNIX socket takes 107"),
        ("AUTH", "maybe", "must be one of token, none"),
        ("TLS_CERTIFICATE", "/a.pem", "needs tls_key"),
        ("TLS_KEY", "/a.key", "needs tls_certificate"),
        (
            "TLS_CLIENT_CA",
            "/ca.pem",
            "needs tls_certificate and tls_key",
        ),
        ("JAIL", "yes", "must be one of auto, require, off"),
        ("JAIL_FIRST_UID", "0", "from 1000"),
        ("ACCEL", "hvf", "must be one of auto, kvm, tcg"),
        ("QEMU_BINARY", "bin/qemu", "absolute path or a name on PATH"),
        ("OPERATOR_DRY_RUN", "yes please", "must be one of 0, 1"),
        (
            "DEFAULT_BOOT_DISK",
            "../etc/shadow",
            "must be an image's name",
        ),
        ("OBSERVER_INTERVAL", "6", "from 0.1 to 5"),
        ("OBSERVER_INTERVAL", "NaN", "from 0.1 to 5"),
        ("OBSERVER_POLICY", "ignore", "must be one of repair, report"),
        (
            "NETWORK_MODE",
            "wifi",
            "must be one of auto, bridge, user, none",
        ),
        ("VLAN_ID", "4095", "from 1 to 4094"),
        ("BRIDGE_NAME", "a-name-that-is-too-long", "1 to 15"),
        ("UPLINK", "eth0,eth1", "the name of an interface"),
        ("UPLINK", "br-vman", "another interface than the bridge"),
        (
            "SUBNET",
            "192.168.100.7/24",
            "did you mean 192.168.100.0/24?",
        ),
        ("SUBNET", "10.0.0.0/31", "/8 to /30"),
        ("SUBNET", "fd00::/64", "must be an IPv4 network"),
        (
            "GATEWAY",
            "10.0.0.1",
            "must be a host address of 192.168.100.0/24",
        ),
        ("GATEWAY", "192.168.100.255", "must be a host address of"),
        ("DNS", "8.8.8.8;8.8.4.4", "separated by commas"),
        ("NETWORK_NAT", "maybe", "must be one of 0, 1"),
        ("NETWORK_MTU", "100", "from 576 to 9216"),
        ("LOG_LEVEL", "loud", "must be one of trace, debug"),
        ("LOG_FORMAT", "xml", "must be one of auto, journald"),
        ("LOG_FILE", "vman.log", "must be an absolute path"),
        ("LOG_MAX_BYTES", "10MB", "must be a number from 4096"),
        ("LOG_BACKUP_COUNT", "-1", "must be a number from 0"),
        ("MAX_VMS", "0", "from 1 to 100000"),
        ("MAX_INFLIGHT", "1e3", "from 1 to 65536"),
        ("MAX_LAUNCHES", "0", "must be auto or a number"),
    ];
    for (name, value, what) in wrong {
        let message = place().with(&format!("VMAN_{name}"), value).fault();
        let start = format!("VMAN_{name} from the environment: {} ", name.to_lowercase());
        assert!(message.starts_with(&start), "{message}");
        assert!(message.contains(what), "{message} lacks {what}");
    }
}

#[test]
fn beyond_loopback_takes_both_tls_and_tokens() {
    let with_tls = || {
        place()
            .with("VMAN_LISTEN", "0.0.0.0:8000")
            .with("VMAN_TLS_CERTIFICATE", "/a.pem")
            .with("VMAN_TLS_KEY", "/a.key")
    };
    let config = with_tls().load(&[]).unwrap();
    assert_eq!(config.http.tls.unwrap().certificate, Path::new("/a.pem"));
    let message = with_tls().with("VMAN_AUTH", "none").fault();
    assert!(message.contains("for loopback only"), "{message}");
    let message = place().with("VMAN_LISTEN", "[::]:8000").fault();
    assert!(
        message.contains("set tls_certificate and tls_key"),
        "{message}"
    );
}

#[test]
fn faults_in_files_name_the_line() {
    let wrong = [
        (
            "\n\nmax_vm = 3\n",
            ":3: max_vm is not a known key; did you mean max_vms?",
        ),
        (
            "max_vms = 3\n[network]\nmode = 1\n",
            ":3: network.mode must be a table",
        ),
        ("max_vms = 3\nvlan_id = \n", ":2: not valid TOML"),
        (
            "vlan_id = 1\nvlan_id = 2\n",
            ":2: not valid TOML: duplicate key",
        ),
        (
            "\nlog_level = 2026-01-01\n",
            ":2: log_level must not be a date",
        ),
        (
            "frobnicate = true\n",
            ":1: frobnicate is not a known key; `vman config show`",
        ),
    ];
    for (text, what) in wrong {
        let message = place().etc("vman.toml", text).fault();
        assert!(message.contains(what), "{message} lacks {what}");
    }
    let message = place().dotenv("VMAN_ACCEL=tcg\nthis is nothing\n").fault();
    assert!(message.contains(".env:2: not of the form"), "{message}");
}

#[test]
fn an_unknown_variable_is_refused_with_what_was_probably_meant() {
    let message = place().with("VMAN_LOGLEVEL", "info").fault();
    assert!(message.ends_with("VMAN_LOGLEVEL is not a known key; did you mean VMAN_LOG_LEVEL?"));
    let client = place().with("VMAN_URL", "http://x").with("VMAN_TOKEN", "t");
    client.with("VMAN_TEST_KERNEL", "/k").load(&[]).unwrap();
}

#[test]
fn all_faults_are_told_at_once() {
    let place = place()
        .etc("vman.toml", "max_vms = 0\nwhat = 1\n")
        .dotenv("VMAN_ACCEL=hvf\n")
        .with("VMAN_SUBNET", "nonsense")
        .with("VMAN_GATEWAY", "10.0.0.1")
        .with("VMAN_LOG_FILE", "/a/log")
        .with("VMAN_LOG_DIR", "/a");
    let error = place.load(&[("vlan_id", "0")]).unwrap_err();
    // The gateway cannot be judged while the subnet is wrong.
    assert_eq!(error.faults.len(), 6, "{error}");
}

#[test]
fn the_python_words_for_levels_are_understood() {
    for (word, level) in [("WARNING", LogLevel::Warn), ("CRITICAL", LogLevel::Error)] {
        let config = place().with("VMAN_LOG_LEVEL", word).load(&[]).unwrap();
        assert_eq!(config.log.level, level);
    }
}

#[test]
fn a_client_finds_the_socket_in_spite_of_faults_that_do_not_concern_it() {
    let place = place().etc("vman.toml", "socket = \"/s/x.sock\"\nwrong = 1\n");
    let socket = client_socket(&Overrides::default(), &place.environment);
    assert_eq!(socket, Path::new("/s/x.sock"));
}

#[test]
fn the_files_in_contrib_parse_to_the_defaults() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let toml = fs::read_to_string(root.join("contrib/vman.toml")).unwrap();
    let dotenv = fs::read_to_string(root.join("contrib/.env.example")).unwrap();
    let page = fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    let defaults = place().load(&[]).unwrap();
    let values = |config: &Config| -> Vec<String> {
        let settings = config.settings.iter();
        settings.map(|setting| setting.value.clone()).collect()
    };
    // Every line is commented out in what people get; here each is meant.
    let uncommented = |text: &str| -> String {
        text.lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with([' ', '#']) && !line.is_empty())
            .fold(String::new(), |all, line| all + line + "\n")
    };
    let from_toml = place()
        .etc("vman.toml", &uncommented(&toml))
        .load(&[])
        .unwrap();
    assert_eq!(values(&from_toml), values(&defaults));
    let from_dotenv = place().dotenv(&uncommented(&dotenv)).load(&[]).unwrap();
    assert_eq!(values(&from_dotenv), values(&defaults));
    place()
        .etc("vman.toml", &toml)
        .dotenv(&dotenv)
        .load(&[])
        .unwrap();
    for key in keys::NETWORK_KEYS {
        assert!(
            toml.contains(&format!("\n# {} =", key.name)),
            "{}",
            key.name
        );
        assert!(
            page.contains(&format!("| `{}` |", key.name)),
            "{}",
            key.name
        );
        assert!(page.contains(key.about), "{}", key.about);
    }
    for key in KEYS {
        assert!(toml.contains(&format!("\n#{} =", key.name)) || key.default.starts_with('('));
        assert!(
            page.contains(&format!("`{}`", key.variable())),
            "{}",
            key.name
        );
    }
}

#[test]
fn further_networks_are_tables_and_each_value_knows_its_source() {
    let lab = "max_vms = 5\n[network.lab]\nbridge = \"br-lab\"\nsubnet = \"10.9.0.0/24\"\nnat = false\nvlan_id = 7\n";
    let dmz = "[network.\"dmz.1\"]\nbridge = \"br-dmz\"\nsubnet = \"10.8.0.0/16\"\ndns = [\"1.1.1.1\"]\n[network.lab]\nisolated = true\n";
    let place = place().etc("vman.toml", lab).etc("conf.d/1.toml", dmz);
    let config = place.load(&[("network.lab.mtu", "9000")]).unwrap();
    let [default, dmz, lab] = &config.network.networks[..] else {
        panic!("{:?}", config.network.networks)
    };
    assert_eq!(
        (default.name.as_str(), default.vlan_id),
        ("default", Some(100))
    );
    assert_eq!((dmz.name.as_str(), dmz.dns.len()), ("dmz.1", 1));
    assert_eq!((dmz.nat, dmz.vlan_id, dmz.isolated), (true, None, false));
    assert_eq!((lab.nat, lab.isolated, lab.mtu), (false, true, 9000));
    assert_eq!((lab.vlan_id, &lab.dns), (Some(7), &default.dns));
    assert_eq!(lab.gateway, Ipv4Addr::new(10, 9, 0, 1));
    let etc = place.environment.configuration_directory.display();
    for (key, value, source) in [
        ("subnet", "10.9.0.0/24", format!("{etc}/vman.toml:4")),
        ("isolated", "1", format!("{etc}/conf.d/1.toml:6")),
        ("gateway", "10.9.0.1", "default".to_owned()),
    ] {
        let shown = from(&config, &format!("network.lab.{key}"));
        assert_eq!(shown, (value.to_owned(), source));
    }
}

#[test]
fn what_is_wrong_with_a_network_is_told_at_its_line() {
    let lab = |more: &str| format!("[network.lab]\nbridge = \"br-lab\"\n{more}\n");
    let good = "subnet = \"10.9.0.0/24\"";
    for (text, what) in [
        (lab(""), ":2: network.lab.bridge needs network.lab.subnet"),
        (
            lab("subnet = \"10.9.0.0/24\"\nuplink = \"eth1\""),
            "network.lab.uplink carries the network's VLAN tagged: say its vlan_id",
        ),
        (
            format!(
                "uplink = \"eth1\"\n{}",
                lab("subnet = \"10.9.0.0/24\"\nvlan_id = 7\nuplink = \"eth1\"")
            ),
            "network.lab.uplink is the uplink of the network default",
        ),
        (
            lab("subnet = \"10.9.0.1/24\""),
            ":3: network.lab.subnet has host bits",
        ),
        (
            lab("subnet = \"192.168.0.0/16\""),
            "overlaps with 192.168.100.0/24 of the network default",
        ),
        (
            lab(&format!("{good}\ngateway = \"10.8.0.1\"")),
            ":4: network.lab.gateway must be a host address",
        ),
        (
            lab(&format!("{good}\nmtu = 70000")),
            "network.lab.mtu must be a number from 576",
        ),
        (
            lab(&format!("{good}\nvlan_id = 4095")),
            "network.lab.vlan_id must be a number from 1",
        ),
        (
            lab(&format!("{good}\ncolour = \"red\"")),
            ":4: network.lab.colour is not a known key",
        ),
        (
            lab(&format!("{good}\nsubnett = \"red\"")),
            "did you mean network.lab.subnet?",
        ),
        (
            lab(&format!(
                "{good}\n[network.other]\nbridge = \"br-lab\"\nsubnet = \"10.7.0.0/24\""
            )),
            "network.other.bridge is the bridge of the network lab",
        ),
        (
            lab(&format!("{good}\nipv6 = 2")),
            "network.lab.ipv6 must be one of",
        ),
        (
            lab(&format!("{good}\nsubnet6 = \"fd12::/64\"")),
            "network.lab.subnet6 is for a network with IPv6: say network.lab.ipv6",
        ),
        (
            lab(&format!("{good}\nipv6 = true\nsubnet6 = \"fd12::1/64\"")),
            ":5: network.lab.subnet6 has host bits set; did you mean fd12::/64?",
        ),
        (
            lab(&format!("{good}\nipv6 = true\nsubnet6 = \"2001:db8::/64\"")),
            "network.lab.subnet6 must be a unique local IPv6 network",
        ),
        (
            lab(&format!("{good}\nipv6 = true\nsubnet6 = \"fd12::/48\"")),
            "network.lab.subnet6 must be a unique local IPv6 network",
        ),
        (
            lab(&format!("{good}\nipv6 = true\nmtu = 1279")),
            "network.lab.ipv6 needs network.lab.mtu to be 1280 at least; it is 1279",
        ),
        (
            format!(
                "ipv6 = true\nsubnet6 = \"fd12::/64\"\n{}",
                lab(&format!("{good}\nipv6 = true\nsubnet6 = \"fd12::/64\""))
            ),
            "network.lab.subnet6 is the IPv6 network of the network default",
        ),
        (
            format!("[network.default]\nbridge = \"b\"\n{good}"),
            "the network `default` has no table",
        ),
        (
            format!("[network.-x]\nbridge = \"b\"\n{good}"),
            "must start with a letter",
        ),
        ("[network.lab]\n".to_owned(), ":1: network.lab is empty"),
    ] {
        let message = place().etc("vman.toml", &text).fault();
        assert!(message.contains(what), "{message} lacks {what}");
    }
}

#[test]
fn all_faults_of_all_networks_are_told_at_once() {
    let text = "subnet = \"nonsense\"\n[network.a]\nbridge = \"br-vman\"\nsubnet = \"10.1.0.0/24\"\nmtu = 1\n[network.b]\nbridge = \"br-b\"\nsubnet = \"10.2.0.0/16\"\n[network.c]\nbridge = \"br-b\"\nsubnet = \"10.3.0.0/16\"\nnat = 7\n[network.d]\nbridge = \"br-d\"\nsubnet = \"10.2.3.0/24\"\n";
    let error = place().etc("vman.toml", text).load(&[]).unwrap_err();
    let told: Vec<_> = error.faults.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 4, "{error}");
    for what in [
        "subnet must be",
        "network.a.mtu",
        "network.c.nat",
        "network.d.subnet",
    ] {
        assert!(
            told.iter().any(|fault| fault.contains(what)),
            "{what}: {error}"
        );
    }
}

#[test]
fn ipv6_is_off_or_on_with_a_prefix_that_follows_or_is_said() {
    let of = |config: &Config| {
        let networks = config.network.networks.iter();
        networks.map(|network| network.ipv6).collect::<Vec<_>>()
    };
    assert_eq!(of(&place().load(&[]).unwrap()), [Ipv6Choice::Off]);
    let lab = "[network.lab]\nbridge = \"br-lab\"\nsubnet = \"10.9.0.0/24\"\nipv6 = true\nsubnet6 = \"fd12:3456:789a::/64\"\nmtu = 1280\n";
    let place = place().etc("vman.toml", lab).with("VMAN_IPV6", "1");
    let config = place.load(&[]).unwrap();
    let [Ipv6Choice::Derived, Ipv6Choice::Said(said)] = of(&config)[..] else {
        panic!("{:?}", of(&config))
    };
    assert_eq!(said.to_string(), "fd12:3456:789a::/64");
    let (shown, _) = from(&config, "network.lab.subnet6");
    assert_eq!(shown, "fd12:3456:789a::/64");
}

#[test]
fn all_that_two_networks_have_in_common_is_told() {
    let same =
        "bridge = \"br-x\"\nsubnet = \"10.9.0.0/24\"\nipv6 = true\nsubnet6 = \"fd12::/64\"\n";
    let text = format!("[network.a]\n{same}[network.b]\n{same}");
    let error = place().etc("vman.toml", &text).load(&[]).unwrap_err();
    for key in ["bridge", "subnet", "subnet6"] {
        let told = format!("network.b.{key} ");
        assert!(error.to_string().contains(&told), "{told}: {error}");
    }
}
