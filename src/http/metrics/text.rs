//! The text format of Prometheus, version 0.0.4
//! (prometheus.io/docs/instrumenting/exposition_formats).
//!
//! Must stay true: a family is written once, in one piece, and is one of the
//! catalogue.

use super::catalogue::{Kind, METRICS, Metric};
use std::fmt::Write as _;
use vman_actors::meters::Histogram;

/// The media type of what is written.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text under way.
#[derive(Default)]
pub(super) struct Exposition(String);

/// One family of the text, under way.
pub(super) struct Samples<'a> {
    out: &'a mut String,
    metric: &'static Metric,
}

impl Exposition {
    /// Begins a family.
    pub(super) fn family(&mut self, name: &str) -> Samples<'_> {
        let metric = METRICS
            .iter()
            .find(|metric| metric.name == name)
            .expect("every family is in the catalogue: a test writes them all");
        let Metric {
            name, kind, help, ..
        } = metric;
        let _ = writeln!(self.0, "# HELP {name} {help}");
        let _ = writeln!(self.0, "# TYPE {name} {}", kind.as_str());
        Samples {
            out: &mut self.0,
            metric,
        }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Samples<'_> {
    /// One value, with its labels in the catalogue's order.
    #[allow(clippy::cast_precision_loss)] // The format knows floating point only.
    pub(super) fn count(&mut self, labels: &[&str], value: u64) -> &mut Self {
        self.value(labels, value as f64)
    }

    /// The same for a value that is no whole number.
    pub(super) fn value(&mut self, labels: &[&str], value: f64) -> &mut Self {
        debug_assert_ne!(self.metric.kind, Kind::Histogram);
        self.sample("", labels, None, value);
        self
    }

    /// A histogram with its labels.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn histogram(&mut self, labels: &[&str], histogram: &Histogram) -> &mut Self {
        debug_assert_eq!(self.metric.kind, Kind::Histogram);
        let spread = histogram.spread();
        for (bound, count) in spread.up_to {
            self.sample("_bucket", labels, Some(&bound.to_string()), count as f64);
        }
        self.sample("_bucket", labels, Some("+Inf"), spread.count as f64);
        self.sample("_sum", labels, None, spread.sum);
        self.sample("_count", labels, None, spread.count as f64);
        self
    }

    fn sample(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: f64) {
        debug_assert_eq!(labels.len(), self.metric.labels.len());
        self.out.push_str(self.metric.name);
        self.out.push_str(suffix);
        let names = self.metric.labels.iter().copied();
        let mut separator = '{';
        for (name, value) in names
            .zip(labels.iter().copied())
            .chain(bound.map(|b| ("le", b)))
        {
            let _ = write!(self.out, "{separator}{name}=\"{}\"", escaped(value));
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_with_a_quote_or_a_line_end_stays_one_label() {
        let mut text = Exposition::default();
        text.family("vman_observer_findings")
            .count(&["a\"b\\c\nd"], 2);
        let text = text.finish();
        let last = text.lines().last().unwrap();
        assert_eq!(last, r#"vman_observer_findings{issue_type="a\"b\\c\nd"} 2"#);
    }
}
