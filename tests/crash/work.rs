//! The stream of work: random requests about all there is, of clients each with
//! things of its own.

use crate::{
    known::{Knowledge, Thing},
    support::{
        daemon::Daemon,
        http::{Answer, request},
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io,
    sync::atomic::{AtomicBool, Ordering},
};

/// The VM with a guest that takes and gives devices, and is never ended.
pub(crate) const GUEST: &str = "worker";

/// A small generator of its own: a failing seed is printed and runs again.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A request, and the things that it makes or ends.
struct Request {
    method: &'static str,
    target: String,
    body: Value,
    things: Vec<Thing>,
}

/// Requests one after the other; what became of the last is what counts.
type Requests = Vec<Request>;

/// What a client works on. No two share any of it.
struct Own {
    vm: String,
    disk: String,
    image: String,
    template: String,
    token: String,
    port: u64,
    /// Whether its VM runs a guest, which lets go of devices.
    guest: bool,
    /// A size for what is made now.
    size_mib: u64,
}

/// A kind of request: its name, how often it is asked for, and what it is.
type Kind = (&'static str, u64, fn(&Own) -> Requests);

/// All of them.
const MIX: &[Kind] = &[
    ("create-vm", 10, |own| make("/vms", &own.vm, own.new_vm())),
    ("start", 10, |own| own.act("start")),
    ("stop-by-force", 2, |own| own.act("stop?force=true")),
    ("stop", 3, |own| own.act("stop?timeout_s=0.2")),
    ("restart", 4, |own| own.act("restart?force=true")),
    ("pause", 6, |own| own.act("pause")),
    ("resume", 6, |own| own.act("resume")),
    ("reset", 3, |own| own.act("reset")),
    ("delete-vm", 3, |own| {
        let mut end = end("/vms", &own.vm);
        end[0].things.push(own.forward());
        end
    }),
    ("create-disk", 6, |own| {
        let body = json!({"name": own.disk, "size_mib": own.size_mib});
        make("/disks", &own.disk, body)
    }),
    ("clone-disk", 4, |own| {
        let body = json!({"name": own.disk, "image": own.image, "size_mib": own.size_mib});
        make("/disks", &own.disk, body)
    }),
    ("resize-disk", 4, |own| {
        let target = format!("/disks/{}/resize", own.disk);
        post(target, json!({"size_mib": own.size_mib}))
    }),
    ("attach-disk", 6, |own| {
        let target = format!("/disks/{}/attach", own.disk);
        post(target, json!({"vm_id": own.vm}))
    }),
    ("detach-disk", 3, |own| {
        let target = format!("/disks/{}/detach", own.disk);
        own.let_go(post(target, Value::Null))
    }),
    ("delete-disk", 4, |own| end("/disks", &own.disk)),
    ("attach-nic", 5, |own| {
        post(format!("/vms/{}/nics", own.vm), json!({}))
    }),
    ("detach-nic", 3, |own| {
        let target = format!("/vms/{}/nics/nic1", own.vm);
        own.let_go(vec![Request::new("DELETE", target, Value::Null)])
    }),
    ("pull-cable", 3, |own| own.link("down")),
    ("plug-cable", 3, |own| own.link("up")),
    ("forward", 4, |own| {
        let body = json!({"vm_id": own.vm, "host_port": own.port, "guest_port": 9});
        let mut made = post("/network/forwards".to_owned(), body);
        made[0].things.push(own.forward());
        made
    }),
    ("end-forward", 2, |own| {
        let (list, id) = own.forward();
        end(list, &id)
    }),
    ("put-image", 5, |own| {
        let target = format!("/images/{}?kind=disk", own.image);
        let mut put = Request::new("PUT", target, Value::Null);
        put.things.push(("/images", own.image.clone()));
        vec![put]
    }),
    ("delete-image", 2, |own| end("/images", &own.image)),
    ("create-template", 2, |own| {
        let body = json!({"name": own.template, "cpu_count": 1, "ram_mib": 32});
        make("/templates", &own.template, body)
    }),
    ("delete-template", 2, |own| end("/templates", &own.template)),
    ("create-token", 2, |own| {
        let body = json!({"name": own.token, "scope": "read"});
        make("/tokens", &own.token, body)
    }),
    ("revoke-token", 2, |own| end("/tokens", &own.token)),
];

/// What is not done to the guest's VM: it would be ended, or could not let go.
const NOT_TO_THE_GUEST: [&str; 9] = [
    "create-vm",
    "start",
    "stop-by-force",
    "stop",
    "restart",
    "pause",
    "resume",
    "reset",
    "delete-vm",
];

/// The names of all kinds.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    MIX.iter().map(|(name, ..)| *name)
}

impl Request {
    fn new(method: &'static str, target: String, body: Value) -> Self {
        Self {
            method,
            target,
            body,
            things: Vec::new(),
        }
    }
}

fn post(target: String, body: Value) -> Requests {
    vec![Request::new("POST", target, body)]
}

fn make(list: &'static str, id: &str, body: Value) -> Requests {
    let mut requests = post(list.to_owned(), body);
    requests[0].things.push((list, id.to_owned()));
    requests
}

fn end(list: &'static str, id: &str) -> Requests {
    let mut request = Request::new("DELETE", format!("{list}/{id}"), Value::Null);
    request.things.push((list, id.to_owned()));
    vec![request]
}

impl Own {
    fn new(number: usize, guest: bool) -> Self {
        let vm = if guest {
            GUEST.to_owned()
        } else {
            format!("vm{number}")
        };
        // Whoever else has the port: that is told, and changes nothing here.
        let base = 20_000 + u64::from(std::process::id() % 1_000) * 8;
        Self {
            vm,
            disk: format!("d{number}"),
            image: format!("i{number}"),
            template: format!("t{number}"),
            token: format!("k{number}"),
            port: base + number as u64,
            guest,
            size_mib: 16,
        }
    }

    fn new_vm(&self) -> Value {
        json!({"template_name": "tiny", "name": self.vm, "disk_gib": 1})
    }

    fn act(&self, action: &str) -> Requests {
        post(format!("/vms/{}/actions/{action}", self.vm), Value::Null)
    }

    fn link(&self, link: &str) -> Requests {
        let target = format!("/vms/{}/nics/nic0", self.vm);
        vec![Request::new("PATCH", target, json!({ "link": link }))]
    }

    fn forward(&self) -> Thing {
        ("/network/forwards", format!("tcp-{}", self.port))
    }

    /// Firmware never lets go of a device, so its VM is stopped first.
    fn let_go(&self, requests: Requests) -> Requests {
        if self.guest {
            return requests;
        }
        let mut all = self.act("stop?force=true&wait_s=10");
        all.extend(requests);
        all
    }
}

/// Who sends requests about what it owns.
pub(crate) struct Client<'a> {
    daemon: &'a Daemon,
    known: &'a Knowledge,
    own: Own,
    dice: Dice,
    /// How many requests were answered, and done, by kind; refused ones under
    /// `refused`.
    pub(crate) answered: BTreeMap<&'static str, u64>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        daemon: &'a Daemon,
        known: &'a Knowledge,
        number: usize,
        guest: bool,
        dice: Dice,
    ) -> Self {
        Self {
            daemon,
            known,
            own: Own::new(number, guest),
            dice,
            answered: BTreeMap::new(),
        }
    }

    /// Sends random work until told to end or the daemon is gone.
    pub(crate) fn work(&mut self, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            self.own.size_mib = 16 * (1 + self.dice.below(8));
            let (name, _, requests) = self.next();
            let mut status = 0;
            for request in requests(&self.own) {
                let Ok(answer) = self.send(&request) else {
                    return;
                };
                status = answer.status;
            }
            let told = if status < 300 { name } else { "refused" };
            *self.answered.entry(told).or_default() += 1;
        }
    }

    fn next(&mut self) -> Kind {
        let own = |name: &str| !self.own.guest || !NOT_TO_THE_GUEST.contains(&name);
        let mine: Vec<_> = MIX.iter().filter(|(name, ..)| own(name)).collect();
        let mut left = self
            .dice
            .below(mine.iter().map(|(_, weight, _)| weight).sum());
        let chosen = mine.into_iter().find(|(_, weight, _)| {
            let is_it = left < *weight;
            left = left.saturating_sub(*weight);
            is_it
        });
        *chosen.expect("the dice are below the sum")
    }

    fn send(&self, asked: &Request) -> io::Result<Answer> {
        let makes = asked.method != "DELETE";
        let answer = self.known.over(&asked.things, makes, || {
            if asked.method == "PUT" {
                let kind = ("Content-Type", "application/octet-stream");
                let socket = self.daemon.socket();
                request(&socket, "PUT", &asked.target, &[kind], &vec![0; 65_536])
            } else {
                self.daemon
                    .try_call(asked.method, &asked.target, &asked.body)
            }
        })?;
        let text = String::from_utf8_lossy(&answer.body);
        assert!(
            answer.status < 500 || answer.status == 503,
            "{} {}: {text}",
            asked.method,
            asked.target
        );
        Ok(answer)
    }
}
