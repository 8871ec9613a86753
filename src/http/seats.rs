//! Who holds a connection, and who gives it up for another.
//!
//! A client that connects and says nothing (or a byte a second) costs a seat. When all are taken,
//! the one that has been there longest without a request under way is cut, so that whoever comes
//! with a request finds a seat. One address from outside may have only so many.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

/// All seats of a listener.
#[derive(Default)]
pub(super) struct Seats {
    taken: Mutex<VecDeque<Arc<Seat>>>,
    peers: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// One connection's.
pub(super) struct Seat {
    /// Requests under way.
    busy: AtomicUsize,
    /// Cancelled when it is to be given up.
    pub(super) cut: CancellationToken,
    /// Its share of its peer's; given back when the seat is.
    _share: Option<Share>,
}

struct Share(Arc<Mutex<BTreeMap<IpAddr, usize>>>, IpAddr);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut peers = lock(&self.0);
        if let Some(count) = peers.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.1);
            }
        }
    }
}

impl Seats {
    /// A seat, unless this peer has `most` already. Loopback is no peer: it is everybody here.
    pub(super) fn take(&self, peer: Option<IpAddr>, most: usize) -> Option<Arc<Seat>> {
        let share = match peer.filter(|peer| !peer.is_loopback()) {
            None => None,
            Some(peer) => {
                let mut peers = lock(&self.peers);
                let count = peers.entry(peer).or_default();
                if *count >= most {
                    return None;
                }
                *count += 1;
                Some(Share(Arc::clone(&self.peers), peer))
            }
        };
        let seat = Arc::new(Seat {
            busy: AtomicUsize::new(0),
            cut: CancellationToken::new(),
            _share: share,
        });
        let mut taken = lock(&self.taken);
        // Those that were given up are dropped from the front as others come.
        while taken
            .front()
            .is_some_and(|first| Arc::strong_count(first) == 1)
        {
            taken.pop_front();
        }
        taken.push_back(Arc::clone(&seat));
        Some(seat)
    }

    /// Cuts the connection that has been there longest and has no request under way.
    pub(super) fn cut_one(&self) {
        let mut taken = lock(&self.taken);
        for _ in 0..taken.len() {
            let Some(seat) = taken.pop_front() else {
                return;
            };
            if Arc::strong_count(&seat) == 1 {
                continue;
            }
            if seat.busy.load(Ordering::SeqCst) == 0 {
                seat.cut.cancel();
                return;
            }
            taken.push_back(seat);
        }
    }

    /// Forgets those that were given up, where many came and went.
    pub(super) fn sweep(&self, most: usize) {
        let mut taken = lock(&self.taken);
        if taken.len() > most {
            taken.retain(|seat| Arc::strong_count(seat) > 1);
        }
    }
}

impl Seat {
    /// Counts a request until it is dropped.
    pub(super) fn request(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }
}

/// A request under way.
pub(super) struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_is_cut_and_never_one_with_a_request() {
        let seats = Seats::default();
        let all: Vec<_> = (0..4).filter_map(|_| seats.take(None, 1)).collect();
        let busy = all[0].request();
        seats.cut_one();
        let cut: Vec<_> = all.iter().map(|seat| seat.cut.is_cancelled()).collect();
        assert_eq!(cut, [false, true, false, false]);
        drop(busy);
        seats.cut_one();
        seats.cut_one();
        assert!(
            !all[0].cut.is_cancelled(),
            "it went to the end of the queue"
        );
        seats.cut_one();
        assert!(all.iter().all(|seat| seat.cut.is_cancelled()));
        drop(all);
        seats.sweep(0);
        assert!(lock(&seats.taken).is_empty());
    }

    #[test]
    fn an_address_from_outside_has_its_share_and_gets_it_back() {
        let seats = Seats::default();
        let peer = Some("192.0.2.1".parse().unwrap());
        let first = seats.take(peer, 2);
        let second = seats.take(peer, 2);
        assert!(first.is_some() && second.is_some());
        assert!(seats.take(peer, 2).is_none());
        assert!(seats.take(Some("192.0.2.2".parse().unwrap()), 2).is_some());
        let local = Some("127.0.0.1".parse().unwrap());
        assert!((0..10).all(|_| seats.take(local, 2).is_some()));
        drop(first);
        seats.sweep(0);
        assert!(seats.take(peer, 2).is_some());
    }
}
