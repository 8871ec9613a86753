//! Events as server-sent events: written once, however many streams there are.

use super::dto::event::EventBody;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};
use vman_model::{Event, Revision};

/// Frames kept: more than a stream that is up to date can be behind.
const MAX_FRAMES: usize = 256;

/// The last frames by revision.
#[derive(Default)]
pub(crate) struct Frames(Mutex<BTreeMap<Revision, Bytes>>);

impl Frames {
    /// The frame of an event.
    pub(crate) fn of(&self, event: &Event) -> serde_json::Result<Bytes> {
        // A frame is whole or not there, whoever panicked meanwhile.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = lock().get(&event.revision) {
            return Ok(frame.clone());
        }
        let frame = write(event)?;
        let mut frames = lock();
        frames.insert(event.revision, frame.clone());
        if frames.len() > MAX_FRAMES {
            frames.pop_first();
        }
        Ok(frame)
    }
}

/// `id`, `event` and `data` lines; JSON has no line breaks of its own.
fn write(event: &Event) -> serde_json::Result<Bytes> {
    let mut out = format!(
        "id: {}\nevent: {}\ndata: ",
        event.revision,
        event.what.kind.as_str()
    )
    .into_bytes();
    serde_json::to_writer(&mut out, &EventBody::of(event))?;
    out.extend_from_slice(b"\n\n");
    Ok(out.into())
}
