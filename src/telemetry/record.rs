//! One log record, owned, so that it can wait in a queue; and the layer that makes it from an event.
//!
//! The fields of the spans around an event come first, the event's own after them and win over spans' of the same
//! name: journald would otherwise show an array.

use std::{fmt, sync::Arc, time::SystemTime};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record as SpanRecord},
};
use tracing_subscriber::{layer::Context, registry::LookupSpan};

use super::queue::Queue;

/// A message or field longer than this is cut: a record must fit into every destination.
const MAX_VALUE: usize = 64 * 1024;

/// One log record.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) at: SystemTime,
    pub(super) level: Level,
    pub(super) target: String,
    pub(super) file: Option<&'static str>,
    pub(super) line: Option<u32>,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, String)>,
}

impl Record {
    /// A record that telemetry writes about itself.
    pub(super) fn own(level: Level, message: &str, fields: Vec<(&'static str, String)>) -> Self {
        Self {
            at: SystemTime::now(),
            level,
            target: "vman::telemetry".to_owned(),
            file: None,
            line: None,
            message: message.to_owned(),
            fields,
        }
    }
}

/// Fields as they are visited; a later value of a name replaces the earlier one.
#[derive(Clone, Debug, Default)]
struct Fields {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, field: &Field, mut value: String) {
        if value.len() > MAX_VALUE {
            value.truncate(value.floor_char_boundary(MAX_VALUE));
            value.push('…');
        }
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let name = field.name();
        match self.fields.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.fields.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        self.put(field, text);
    }
}

/// Makes a record of each event and offers it to every queue. Never waits.
#[derive(Debug)]
pub(super) struct RecordLayer {
    pub(super) queues: Vec<Queue>,
}

impl<S> tracing_subscriber::Layer<S> for RecordLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &SpanRecord<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        if let Some(scope) = context.event_scope(event) {
            for span in scope.from_root() {
                if let Some(of_span) = span.extensions().get::<Fields>() {
                    for (name, value) in &of_span.fields {
                        fields.fields.retain(|(known, _)| known != name);
                        fields.fields.push((name, value.clone()));
                    }
                }
            }
        }
        event.record(&mut fields);
        let meta = event.metadata();
        let record = Arc::new(Record {
            at: SystemTime::now(),
            level: *meta.level(),
            target: meta.target().to_owned(),
            file: meta.file(),
            line: meta.line(),
            message: fields.message,
            fields: fields.fields,
        });
        for queue in &self.queues {
            queue.offer(&record);
        }
    }
}
