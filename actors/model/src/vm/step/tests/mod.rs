//! What must hold of `step`, whatever happens.
//!
//! `table` walks every phase against every input, `laws` states what holds of
//! any single step, `walk` lets long lives run on a simulated host (`host`, and
//! `machine` for its QEMU) that loses, delays and repeats things. Meanwhile
//! `watch` looks at the host, and `oracle` at what was asked and decided,
//! knowing nothing of the code. `disks` tells of data disks, `nics` of network cards, `space` of guests that wait for
//! it, `answers` what one input leads to, `rows` what operations say, `cases` keeps the histories that once went wrong,
//! `causes` that no change is without one, `doc` holds the page in `docs/` to the code, and `given` makes records and
//! inputs for all of them.
//! Must not: repeat the decisions of `step`; an invariant that has to ask how
//! `step` decides is not one.

mod answers;
mod cases;
mod causes;
mod disks;
mod doc;
pub(crate) mod given;
mod host;
mod laws;
mod machine;
mod nics;
mod oracle;
mod rows;
mod space;
mod table;
mod walk;
mod watch;
