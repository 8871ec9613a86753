//! Running `nft`: our tables replaced in one transaction, and looked at.
//!
//! Must not: make rules (`ruleset.rs` does), or touch a table that is not ours.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long `nft` may take. Thousands of guests take it a fraction of a second.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the rules need to limit guests, in a table that is never made.
const LIMIT_PROBE: &str = r#"table bridge vman-probe {
  limit one { rate over 1 kbytes/second burst 64 kbytes }
  map limits { type ifname : limit; elements = { "vman-probe" : "one" } }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    limit name iifname map @limits drop
  }
}"#;

/// `nft` on this host.
#[derive(Debug, Clone)]
pub(super) struct Firewall {
    pub(super) nft: PathBuf,
}

impl Firewall {
    /// Runs a script as one transaction: all of it or nothing.
    pub(super) async fn run(&self, script: &str) -> io::Result<()> {
        self.nft(&["-f", "-"], script).await.map(drop)
    }

    /// Our tables as the kernel has them now; one that is missing is empty.
    pub(super) async fn listing(&self, table: &str) -> io::Result<String> {
        let mut all = String::new();
        for family in ["bridge", "inet"] {
            let args = ["-s", "list", "table", family, table];
            match self.nft(&args, "").await {
                Ok(listing) => all.push_str(&listing),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                Err(_) => {}
            }
        }
        Ok(all)
    }

    /// Why what guests send cannot be limited here; the kernel is asked, nothing is changed.
    pub(super) async fn limits_missing(&self) -> Option<String> {
        let error = self.nft(&["-c", "-f", "-"], LIMIT_PROBE).await.err()?;
        Some(format!(
            "what guests send is not limited: the kernel lacks nftables' limits (module nft_limit): {error}"
        ))
    }

    /// The first chain of somebody else's that drops whatever is forwarded and says nothing about
    /// our bridge, in words: Docker's, most often.
    pub(super) async fn who_drops(&self, ours: &str, bridge: &str, ipv6: bool) -> Option<String> {
        let listing = self.nft(&["-j", "list", "chains"], "").await.ok()?;
        let listing: Value = serde_json::from_str(&listing).ok()?;
        let objects = listing.get("nftables")?.as_array()?;
        for chain in objects.iter().filter_map(|object| object.get("chain")) {
            let word = |name| chain.get(name).and_then(Value::as_str).unwrap_or_default();
            let (family, table, name) = (word("family"), word("table"), word("name"));
            let drops = word("hook") == "forward" && word("policy") == "drop";
            let tool = match family {
                "ip" | "inet" => "iptables",
                "ip6" if ipv6 => "ip6tables",
                _ => continue,
            };
            if !drops || table == ours {
                continue;
            }
            let rules = self.nft(&["list", "table", family, table], "").await;
            if rules.is_ok_and(|rules| rules.contains(bridge)) {
                continue;
            }
            return Some(format!(
                "the chain {name} of the table {family} {table} drops forwarded packets and has no rule for {bridge}: \
                 guests do not reach other networks until it accepts them (with Docker: \
                 {tool} -I DOCKER-USER -i {bridge} -j ACCEPT; {tool} -I DOCKER-USER -o {bridge} -j ACCEPT)"
            ));
        }
        None
    }

    async fn nft(&self, args: &[&str], input: &str) -> io::Result<String> {
        let mut child = Command::new(&self.nft)
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take();
        let input = input.as_bytes().to_vec();
        // Written beside the reading: a long script and a long answer would wait for each other.
        let writing = tokio::spawn(async move {
            if let Some(stdin) = stdin.as_mut() {
                // One that has ended early says why on its stderr.
                let _ = stdin.write_all(&input).await;
            }
        });
        let output = timeout(DEADLINE, child.wait_with_output())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nft did not end in time"))??;
        let _ = writing.await;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        let why: Vec<_> = why.lines().take(3).collect();
        Err(io::Error::other(format!("nft: {}", why.join(" "))))
    }
}
