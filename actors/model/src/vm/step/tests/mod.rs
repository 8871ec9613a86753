//! What must hold of `step`, whatever happens.
//!
//! `table` walks every phase against every input, `laws` states what holds of
//! any single step, `walk` lets long lives run on a simulated host (`host`)
//! that loses, delays and repeats things while an oracle (`oracle`) that knows
//! nothing of the code watches, and `cases` keeps the histories that once went
//! wrong. `doc` holds the page in `docs/` to the code. `given` makes records and inputs for all of them.
//! Must not: repeat the decisions of `step`; an invariant that has to ask how
//! `step` decides is not one.

mod cases;
mod doc;
mod given;
mod host;
mod laws;
mod oracle;
mod table;
mod walk;
