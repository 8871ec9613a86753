//! Which columns a kind of thing has in a table, and how values look for people.
//!
//! Answers are read with tolerance: a missing field is an empty cell, an unknown one is left out of tables.

use super::{args::Format, error::CliError, sanitize::one_line, terminal::Terminal};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::Value;

/// How a cell is made of a value.
#[derive(Clone, Copy, Debug)]
pub enum Look {
    /// As it is.
    Plain,
    /// A number of MiB.
    Mib,
    /// A number of bytes.
    Bytes,
    /// A number of per cent.
    Percent,
    /// RFC 3339 or milliseconds since 1970.
    Time,
}

/// A column: its title, the fields it may come from (the first that is there), and its look.
pub type Column = (&'static str, &'static [&'static str], Look);

/// A kind of thing.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Fields that may hold its id.
    pub id: &'static [&'static str],
    /// Columns in a list.
    pub columns: &'static [Column],
    /// What is said instead of an empty table.
    pub none: &'static str,
}

use Look::{Bytes, Mib, Percent, Plain, Time};

/// VMs.
pub const VM: View = View {
    id: &["id"],
    columns: &[
        ("NAME", &["id"], Plain),
        ("STATE", &["state"], Plain),
        ("REASON", &["reason"], Plain),
        ("CPUS", &["vm_template.cpu_count"], Plain),
        ("MEMORY", &["vm_template.ram_mib"], Mib),
        ("ADDRESS", &["local_ip"], Plain),
        ("TEMPLATE", &["vm_template.name"], Plain),
        ("STARTED", &["started_at"], Time),
    ],
    none: "no VMs; `vman vm launch NAME --template TEMPLATE` makes one",
};

/// Templates.
pub const TEMPLATE: View = View {
    id: &["name"],
    columns: &[
        ("NAME", &["name"], Plain),
        ("CPUS", &["cpu_count"], Plain),
        ("MEMORY", &["ram_mib"], Mib),
        ("IMAGE", &["image", "boot.kernel"], Plain),
        ("FIRMWARE", &["firmware"], Plain),
        ("DISK GIB", &["disk_gib"], Plain),
    ],
    none: "no templates; `vman template create NAME --cpus 1 --ram 1` makes one",
};

/// Disks.
pub const DISK: View = View {
    id: &["id"],
    columns: &[
        ("ID", &["id"], Plain),
        ("SIZE", &["size_mib"], Mib),
        ("ALLOCATED", &["allocated_bytes"], Bytes),
        ("STATE", &["state"], Plain),
        ("VM", &["vm_id"], Plain),
        ("DEVICE", &["mount_point"], Plain),
        ("FORMAT", &["format"], Plain),
        ("IMAGE", &["backing_image"], Plain),
    ],
    none: "no disks; `vman disk create NAME --size 10` makes one",
};

/// Images.
pub const IMAGE: View = View {
    id: &["name"],
    columns: &[
        ("NAME", &["name"], Plain),
        ("KIND", &["kind"], Plain),
        ("FORMAT", &["format"], Plain),
        ("SIZE", &["size_bytes", "size"], Bytes),
        ("CREATED", &["created_at"], Time),
    ],
    none: "no images; `vman image put NAME FILE --kind disk` uploads one",
};

/// Leases.
pub const LEASE: View = View {
    id: &["vm_id", "id"],
    columns: &[
        ("VM", &["vm_id"], Plain),
        ("ADDRESS", &["ip", "local_ip", "address"], Plain),
        ("IPV6", &["ip6"], Plain),
        ("MAC", &["mac"], Plain),
        ("INTERFACE", &["tap", "interface"], Plain),
    ],
    none: "no addresses are given",
};

/// Networks.
pub const NETWORK: View = View {
    id: &["name"],
    columns: &[
        ("NETWORK", &["name"], Plain),
        ("MODE", &["mode"], Plain),
        ("BRIDGE", &["bridge_name"], Plain),
        ("SUBNET", &["subnet"], Plain),
        ("GATEWAY", &["gateway"], Plain),
        ("IPV6", &["subnet6"], Plain),
        ("NAT", &["nat"], Plain),
        ("ISOLATED", &["isolated"], Plain),
        ("HELD", &["allocated_ips"], Plain),
        ("FREE", &["available_ips"], Plain),
    ],
    none: "no networks: VMs are not connected to a bridge",
};

/// Network cards of a VM.
pub const NIC: View = View {
    id: &["id"],
    columns: &[
        ("CARD", &["id"], Plain),
        ("MODE", &["mode"], Plain),
        ("STATE", &["state"], Plain),
        ("LINK", &["link"], Plain),
        ("ADDRESS", &["ip"], Plain),
        ("IPV6", &["ip6"], Plain),
        ("MAC", &["mac"], Plain),
        ("IN KIB/S", &["limits", "inbound", "average"], Plain),
        ("OUT KIB/S", &["limits", "outbound", "average"], Plain),
        ("RECEIVED", &["rx_bytes"], Bytes),
        ("SENT", &["tx_bytes"], Bytes),
    ],
    none: "no network cards",
};

/// Ports of the host that lead into VMs.
pub const FORWARD: View = View {
    id: &["id"],
    columns: &[
        ("FORWARD", &["id"], Plain),
        ("PROTOCOL", &["protocol"], Plain),
        ("HOST PORT", &["host_port"], Plain),
        ("VM", &["vm_id"], Plain),
        ("GUEST PORT", &["guest_port"], Plain),
    ],
    none: "no ports are forwarded",
};

/// What the observer found.
pub const ISSUE: View = View {
    id: &["resource_id"],
    columns: &[
        ("ISSUE", &["issue_type"], Plain),
        ("RESOURCE", &["resource_id"], Plain),
        ("DETAILS", &["details"], Plain),
        ("ACTION", &["action"], Plain),
    ],
    none: "no issues: the host is as recorded",
};

/// The host.
pub const HOST: View = View {
    id: &["boot_id"],
    columns: &[
        ("BOOT", &["boot_id"], Plain),
        ("DRAINING", &["draining"], Plain),
        ("DRAINED", &["drain.done"], Plain),
        ("SINCE", &["drain.since"], Time),
        ("TO START AGAIN", &["drain.vms"], Plain),
        ("STILL STARTING", &["starting"], Plain),
    ],
    none: "no host",
};

/// Backups of the store.
pub const BACKUP: View = View {
    id: &["file"],
    columns: &[
        ("FILE", &["file"], Plain),
        ("SIZE", &["size_bytes"], Bytes),
        ("REVISION", &["revision"], Plain),
        ("MADE", &["made_at"], Time),
        ("REMOVED", &["removed"], Plain),
    ],
    none: "no backups",
};

/// Operations.
pub const OPERATION: View = View {
    id: &["id"],
    columns: &[
        ("ID", &["id"], Plain),
        ("KIND", &["kind"], Plain),
        ("OF", &["vm_id", "disk_id", "image"], Plain),
        ("STATUS", &["status"], Plain),
        ("PROGRESS", &["progress"], Percent),
        ("STEP", &["step"], Plain),
        ("CREATED", &["created_at"], Time),
        ("ERROR", &["error.detail", "error"], Plain),
    ],
    none: "no operations",
};

/// Events.
pub const EVENT: View = View {
    id: &["revision"],
    columns: &[
        ("REVISION", &["revision"], Plain),
        ("TIME", &["at", "time"], Time),
        ("KIND", &["kind"], Plain),
        ("OF", &["vm_id", "subject.id", "subject", "disk_id"], Plain),
        ("FROM", &["from"], Plain),
        ("TO", &["to"], Plain),
        ("REASON", &["reason"], Plain),
        ("CAUSE", &["cause.origin", "cause"], Plain),
        ("DETAIL", &["detail", "cause.input"], Plain),
    ],
    none: "no events",
};

/// Tokens.
pub const TOKEN: View = View {
    id: &["name"],
    columns: &[
        ("NAME", &["name"], Plain),
        ("SCOPE", &["scope"], Plain),
        ("CREATED", &["created_at"], Time),
        ("EXPIRES", &["expires_at"], Time),
        ("LAST USED", &["last_used_at"], Time),
    ],
    none: "no tokens; `vman token create NAME` makes one",
};

/// Settings of the configuration.
pub const SETTING: View = View {
    id: &["name"],
    columns: &[
        ("NAME", &["name"], Plain),
        ("VALUE", &["value"], Plain),
        ("FROM", &["from"], Plain),
    ],
    none: "",
};

impl View {
    /// Prints a list.
    pub fn list(
        &self,
        items: &[Value],
        format: Format,
        terminal: &mut Terminal,
    ) -> Result<(), CliError> {
        match format {
            Format::Table if items.is_empty() => {
                terminal.note(self.none);
                Ok(())
            }
            Format::Table => terminal.line(&self.table(items, terminal.width)),
            Format::Name => items
                .iter()
                .try_for_each(|item| terminal.line(&self.id_of(item))),
            Format::Json | Format::Yaml => {
                document(&Value::Array(items.to_vec()), format, terminal)
            }
        }
    }

    /// Prints one thing.
    pub fn one(
        &self,
        item: &Value,
        format: Format,
        terminal: &mut Terminal,
    ) -> Result<(), CliError> {
        match format {
            Format::Table => terminal.line(&details(item, terminal.width)),
            Format::Name => terminal.line(&self.id_of(item)),
            Format::Json | Format::Yaml => document(item, format, terminal),
        }
    }

    /// The thing's id, empty if it has none.
    pub fn id_of(&self, item: &Value) -> String {
        first(item, self.id).map_or_else(String::new, |id| cell(id, Plain))
    }

    /// The cells of one thing.
    pub fn row(&self, item: &Value) -> Vec<String> {
        let columns = self.columns.iter();
        columns
            .map(|(_, fields, look)| {
                first(item, fields).map_or_else(String::new, |value| cell(value, *look))
            })
            .collect()
    }

    fn table(&self, items: &[Value], width: Option<u16>) -> String {
        let mut table = bare_table(width);
        table.set_header(self.columns.iter().map(|(title, _, _)| *title));
        for item in items {
            table.add_row(self.row(item));
        }
        finished(&table)
    }
}

/// Prints a value as JSON or YAML.
pub fn document(value: &Value, format: Format, terminal: &mut Terminal) -> Result<(), CliError> {
    let text = if format == Format::Yaml {
        serde_norway::to_string(value).map_err(std::io::Error::other)?
    } else {
        format!("{value:#}\n")
    };
    terminal.write(text.as_bytes())
}

fn bare_table(width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Into a pipe nothing is wrapped: a line is a thing.
    if let Some(width) = width {
        table.set_width(width);
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

fn finished(table: &Table) -> String {
    // The preset pads each cell by one blank, also the first.
    let lines: Vec<String> = table
        .lines()
        .map(|line| {
            let line = line.trim_end();
            line.strip_prefix(' ').unwrap_or(line).to_owned()
        })
        .collect();
    lines.join("\n")
}

/// Every field of a thing, a line each; fields of parts as `part.field`.
fn details(item: &Value, width: Option<u16>) -> String {
    let mut rows = Vec::new();
    flatten("", item, &mut rows);
    let mut table = bare_table(width);
    for (name, value) in rows {
        table.add_row([format!("{name}:"), value]);
    }
    finished(&table)
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let Value::Object(fields) = value else {
        rows.push((prefix.to_owned(), cell(value, Plain)));
        return;
    };
    for (name, value) in fields {
        let name = one_line(name);
        let name = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Null => {}
            Value::Object(_) => flatten(&name, value, rows),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (index, item) in items.iter().enumerate() {
                    flatten(&format!("{name}.{index}"), item, rows);
                }
            }
            _ if name.ends_with("_at") => rows.push((name, cell(value, Time))),
            _ => rows.push((name, cell(value, Plain))),
        }
    }
}

/// The first of these fields that is there and not null; a dot leads into a part.
pub fn first<'a>(item: &'a Value, fields: &[&str]) -> Option<&'a Value> {
    fields
        .iter()
        .filter_map(|field| {
            let mut parts = field.split('.');
            parts.try_fold(item, |value, part| value.get(part))
        })
        .find(|value| !value.is_null())
}

fn cell(value: &Value, look: Look) -> String {
    let number = value.as_u64();
    match (look, value) {
        (Mib, _) if number.is_some() => size(number.unwrap_or_default().saturating_mul(1 << 20)),
        (Bytes, _) if number.is_some() => size(number.unwrap_or_default()),
        (Percent, Value::Number(number)) => format!("{number}%"),
        (Time, Value::Number(number)) => number
            .as_i64()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .map_or_else(|| number.to_string(), short),
        (Time, Value::String(text)) => text
            .parse::<Timestamp>()
            .map_or_else(|_| one_line(text), short),
        (_, Value::Null) => String::new(),
        (_, Value::String(text)) => one_line(text),
        (_, Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| cell(item, Plain)).collect();
            items.join(",")
        }
        (_, other) => one_line(&other.to_string()),
    }
}

/// To the second, which is what people compare.
fn short(at: Timestamp) -> String {
    format!("{at:.0}")
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths % 10 == 0 || unit == 0 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}
