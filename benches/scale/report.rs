//! The table of figures: printed, and with `VMAN_BENCH_WRITE=1` written to
//! docs/performance.md in place of the last one.

use super::plot::Series;
use std::{fmt::Write as _, fs, path::Path};

const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- figures: written by `make bench-scale` -->\n";
const END: &str = "<!-- end of the figures -->";

/// What was measured, as lines of Markdown.
pub(crate) struct Report {
    text: String,
}

impl Report {
    pub(crate) fn new() -> Self {
        let mut report = Self {
            text: String::new(),
        };
        report.line(&format!("Measured on {}.\n", machine()));
        report.line("| what | figure | aim |\n|---|---|---|");
        report
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.text, "{line}");
    }

    /// One row of the table.
    pub(crate) fn row(
        &mut self,
        what: impl AsRef<str>,
        figure: impl AsRef<str>,
        aim: &'static str,
    ) {
        self.line(&format!(
            "| {} | {} | {aim} |",
            what.as_ref(),
            figure.as_ref()
        ));
    }

    /// How figures grow with the number of VMs.
    pub(crate) fn growth(&mut self, all: &[Series]) {
        let Some(first) = all.first() else { return };
        let mut head = "\n| cost with so many VMs |".to_owned();
        for (size, _) in &first.points {
            let _ = write!(head, " {size} |");
        }
        self.line(&format!("{head} exponent |"));
        self.line(&format!("|---|{}---|", "---|".repeat(first.points.len())));
        for one in all {
            let mut row = format!("| {}, {} |", one.what, one.unit);
            for (_, figure) in &one.points {
                let _ = write!(row, " {figure:.1} |");
            }
            self.line(&format!("{row} {:.2} |", one.exponent()));
        }
    }

    /// Tells how busy the machine was by the end, and writes the page if that is wanted.
    pub(crate) fn finish(mut self) {
        self.line(&format!("\nLoad of the machine at the end: {}.", load()));
        if std::env::var_os("VMAN_BENCH_WRITE").is_none() {
            return;
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
        let page = fs::read_to_string(&file).unwrap();
        let (before, rest) = page.split_once(BEGIN).expect("the page has its marks");
        let (_, after) = rest.split_once(END).expect("the page has its marks");
        let text = format!("{before}{BEGIN}\n{}\n{END}{after}", self.text);
        fs::write(file, text).unwrap();
    }
}

/// What the figures were measured on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory: u64 = field(&read("/proc/meminfo"), "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or_default();
    format!(
        "{cpus} CPUs ({}), {} GiB of memory, Linux {}; load at the beginning {}",
        field(&read("/proc/cpuinfo"), "model name"),
        memory >> 20,
        read("/proc/sys/kernel/osrelease").trim(),
        load()
    )
}

/// The load over the last minute.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}
