//! Figures that VMAN counts about itself while it works: counters, histograms,
//! and families of them by label.
//!
//! Owns: counting that makes nobody wait. Must not: know how the figures are
//! told (the HTTP front end writes them down), or grow without bound: a family
//! over [`MAX_SERIES`] counts the rest under `other`.
//! Look next: [`TreeMeters`], fed by the store's writer and by the supervisors.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use vman_model::{Change, Event, EventKind, VmId, Write, vm::Phase};

/// Series of one family. Labels are words of ours, so that no client can make
/// more; this is the net below.
pub const MAX_SERIES: usize = 1_000;
/// The label of what found no room.
const OTHER: &str = "other";

/// Goes up only.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less, of those that were counted before.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a histogram of durations, in seconds.
pub const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// The upper bounds of a histogram of small numbers.
pub const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// How values are spread over fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound and one for what is above the last.
    counts: Vec<AtomicU64>,
    sum_millionths: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new(SECONDS)
    }
}

/// What a histogram holds at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Values up to each bound, the smaller ones included.
    pub up_to: Vec<(f64, u64)>,
    /// All values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl Histogram {
    /// With bounds that go up.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            bounds,
            counts,
            sum_millionths: AtomicU64::new(0),
        }
    }

    /// Counts a duration.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.put(took.as_secs_f64(), micros);
    }

    /// Counts a number.
    pub fn observe_number(&self, number: usize) {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.put(f64::from(number), u64::from(number) * 1_000_000);
    }

    fn put(&self, value: f64, millionths: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_millionths.fetch_add(millionths, Ordering::Relaxed);
    }

    /// What it holds now.
    pub fn spread(&self) -> Spread {
        let mut count = 0;
        let mut up_to = Vec::with_capacity(self.bounds.len());
        for (place, here) in self.counts.iter().enumerate() {
            count += here.load(Ordering::Relaxed);
            if let Some(bound) = self.bounds.get(place) {
                up_to.push((*bound, count));
            }
        }
        #[allow(clippy::cast_precision_loss)] // 2^53 microseconds are 285 years.
        let sum = self.sum_millionths.load(Ordering::Relaxed) as f64 / 1e6;
        Spread { up_to, count, sum }
    }
}

/// Figures of one kind by `N` labels.
#[derive(Debug)]
pub struct Family<V, const N: usize>(RwLock<BTreeMap<[String; N], Arc<V>>>);

impl<V, const N: usize> Default for Family<V, N> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<V: Default, const N: usize> Family<V, N> {
    /// The figure with these labels.
    pub fn with(&self, labels: [&str; N]) -> Arc<V> {
        let mut labels = labels.map(str::to_owned);
        {
            // Nothing of a figure breaks when its reader panics.
            let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(value) = known.get(&labels) {
                return value.clone();
            }
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_SERIES {
            labels = std::array::from_fn(|_| OTHER.to_owned());
        }
        known.entry(labels).or_default().clone()
    }

    /// Forgets the figures whose labels are of something that is no more.
    fn forget(&self, gone: impl Fn(&[String; N]) -> bool) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|labels, _| !gone(labels));
    }

    /// Every figure, in the order of the labels.
    pub fn all(&self) -> Vec<([String; N], Arc<V>)> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

/// What is counted of all actors of one kind.
#[derive(Debug, Default)]
pub struct ActorMeter {
    /// Messages in their mailboxes.
    pub waiting: Gauge,
    /// How long they took over one.
    pub handled: Histogram,
}

/// What the tree counts: its restarts, the store's commits, and what the changes say.
#[derive(Debug)]
pub struct TreeMeters {
    /// How long durable commits take.
    pub commit_time: Histogram,
    /// Changes in one commit.
    pub batch: Histogram,
    /// Commits that failed.
    pub failed_commits: Counter,
    /// Mailboxes and handlers by what the actors are (`store`, `vm`).
    pub actors: Family<ActorMeter, 1>,
    /// Restarts of actors by the same.
    pub actor_restarts: Family<Counter, 1>,
    /// Events by kind.
    pub events: Family<Counter, 1>,
    /// Restarts of VMs by the reason for which the life before ended.
    pub vm_restarts: Family<Counter, 1>,
    /// Ended operations by kind and end, with how long they took.
    pub operations: Family<Histogram, 2>,
    /// Failures of disks that QEMU told: by VM, disk and why (`no_space`, `io_error`).
    pub disk_errors: Family<Counter, 3>,
}

impl Default for TreeMeters {
    fn default() -> Self {
        Self {
            commit_time: Histogram::default(),
            batch: Histogram::new(SIZES),
            failed_commits: Counter::default(),
            actors: Family::default(),
            actor_restarts: Family::default(),
            events: Family::default(),
            vm_restarts: Family::default(),
            operations: Family::default(),
            disk_errors: Family::default(),
        }
    }
}

/// What a change adds to the meters once it is durable.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ended: Vec<(&'static str, &'static str, Duration)>,
    disk_failed: Option<[String; 3]>,
    erased: Vec<VmId>,
}

impl Tally {
    /// Looks at a change before it is applied.
    pub(crate) fn of(change: &Change) -> Self {
        let ended = change.writes.iter().filter_map(|write| match write {
            Write::PutOperation(operation) if operation.status.is_end() => {
                let until = operation.finished_at.unwrap_or(operation.created_at);
                let took = until.0.saturating_sub(operation.created_at.0);
                let (kind, end) = (operation.kind.as_str(), operation.status.as_str());
                Some((kind, end, Duration::from_millis(took)))
            }
            _ => None,
        });
        let erased = change.writes.iter().filter_map(|write| match write {
            Write::EraseVm(vm) => Some(vm.clone()),
            _ => None,
        });
        Self {
            ended: ended.collect(),
            disk_failed: disk_failed(change),
            erased: erased.collect(),
        }
    }
}

/// The VM, the disk and the reason, if the change tells that a disk failed.
fn disk_failed(change: &Change) -> Option<[String; 3]> {
    change
        .event
        .as_ref()
        .filter(|event| event.kind == EventKind::DiskFailed)?;
    change.writes.iter().find_map(|write| match write {
        Write::PutVm(vm) => {
            let reason = if vm.failed_for_space {
                "no_space"
            } else {
                "io_error"
            };
            let disk = vm.failed_disk.as_ref()?;
            Some([vm.id.as_str(), disk.as_str(), reason].map(str::to_owned))
        }
        _ => None,
    })
}

impl TreeMeters {
    pub(crate) fn count(&self, tally: &Tally) {
        for (kind, end, took) in &tally.ended {
            self.operations.with([kind, end]).observe(*took);
        }
        if let Some(labels) = &tally.disk_failed {
            self.disk_errors
                .with(labels.each_ref().map(String::as_str))
                .inc();
        }
        for vm in &tally.erased {
            self.disk_errors.forget(|[of, ..]| of == vm.as_str());
        }
    }

    pub(crate) fn count_event(&self, event: &Event) {
        let what = &event.what;
        self.events.with([what.kind.as_str()]).inc();
        if what.to == Some(Phase::Backoff) && what.from != what.to {
            let reason = what.reason.map_or("unknown", |reason| reason.as_str());
            self.vm_restarts.with([reason]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_value_in_its_bound_and_all_above() {
        let histogram = Histogram::new(&[1.0, 10.0]);
        for number in [0, 1, 2, 10, 11] {
            histogram.observe_number(number);
        }
        let spread = histogram.spread();
        assert_eq!(spread.up_to, [(1.0, 2), (10.0, 4)]);
        assert_eq!((spread.count, spread.sum), (5, 24.0));
    }

    #[test]
    fn what_is_erased_has_no_figures_any_more() {
        let family = Family::<Counter, 1>::default();
        for vm in ["gone", "there"] {
            family.with([vm]).inc();
        }
        family.forget(|[vm]| vm == "gone");
        let left: Vec<_> = family.all().into_iter().map(|(labels, _)| labels).collect();
        assert_eq!(left, [["there".to_owned()]]);
    }

    #[test]
    fn a_family_never_grows_beyond_its_bound() {
        let family = Family::<Counter, 1>::default();
        for number in 0..2 * MAX_SERIES {
            family.with([&number.to_string()]).inc();
        }
        assert_eq!(family.all().len(), MAX_SERIES + 1);
        assert_eq!(family.with([OTHER]).get(), MAX_SERIES as u64);
        let all: u64 = family.all().iter().map(|(_, counter)| counter.get()).sum();
        assert_eq!(all, 2 * MAX_SERIES as u64);
    }
}
