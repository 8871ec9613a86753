//! What guests receive, held back at their TAPs: the queueing discipline `tbf`, by netlink.
//!
//! Owns: the discipline at the root of a TAP that carries our handle. Must not: decide limits, or
//! touch a discipline that is not ours on a card without one. What guests send is limited by the
//! firewall's rules (`ruleset.rs`): the kernel queues nothing on the way in.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use vman_model::NetworkPlan;
use vman_model::network::Limit;

use super::links::{Link, LinkError, Links};
use super::tap;

/// What marks a discipline as ours: the letters VM.
const OURS: TcHandle = TcHandle {
    major: 0x564d,
    minor: 0,
};
const KIND: &str = "tbf";

/// `TCA_OPTIONS`, and what is in it: `TCA_TBF_PARMS`, `TCA_TBF_BURST`, `TCA_TBF_PBURST`.
const OPTIONS: u16 = 2;
const PARAMETERS: u16 = 1;
const BURST: u16 = 6;
const PEAK_BURST: u16 = 7;
/// `TC_LINKLAYER_ETHERNET`: without it the kernel wants a table of rates.
const ETHERNET: u8 = 1;

/// What waits at most: what passes in this part of a second, and a piece of the largest size twice.
const QUEUE_PARTS: u32 = 10;
const LEAST_QUEUE: u32 = 128 << 10;
/// What passes at the peak at once: the largest piece that the kernel hands over.
const PIECE: u32 = 64 << 10;

/// What was set, and how the kernel tells it: it is not told in the words it was set in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shaped {
    link: u32,
    limit: Limit,
    told: Vec<u8>,
}

/// What this daemon has set so far, by TAP; nothing is known of it before its first look.
pub(super) type Shapes = Option<BTreeMap<String, Shaped>>;

/// What became of the limits.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How many somebody else had changed: they are as they were again.
    pub(super) again: usize,
    /// Why some cannot be held.
    pub(super) problem: Option<String>,
}

/// Makes the TAPs that are there hold what their guests receive to the plan.
pub(super) async fn settle(
    links: &Links,
    plan: &NetworkPlan,
    shapes: &mut Shapes,
) -> Result<Held, LinkError> {
    let ports = plan.ports.iter();
    let limits: BTreeMap<_, _> = ports
        .map(|port| (port.tap.as_str(), port.limits.inbound))
        .collect();
    let none = limits.values().all(Option::is_none);
    // A daemon before this one may have limited cards that have no limit now.
    if none && shapes.as_ref().is_some_and(BTreeMap::is_empty) {
        return Ok(Held::default());
    }
    let mut held = Held::default();
    let found = ours(links).await?;
    let there = links.all().await?;
    let before = shapes.take().unwrap_or_default();
    let mut set = Vec::new();
    for link in &there {
        let Some(limit) = limits.get(link.name.as_str()) else {
            continue;
        };
        let now = found.get(&link.index);
        let was = before.get(&link.name).filter(|was| was.link == link.index);
        let done = match limit {
            None if now.is_some() => lift(links, link).await,
            None => Ok(()),
            Some(limit) => {
                set.push((link, *limit));
                let same = was.filter(|was| was.limit == *limit);
                if same.is_some_and(|was| Some(&was.told) == now) {
                    continue;
                }
                held.again += usize::from(same.is_some());
                hold(links, link, *limit).await
            }
        };
        // One that vanishes at this moment was on its way out with its QEMU.
        if let Err(error) = done
            && links.find(&link.name).await?.is_some()
        {
            held.problem = Some(error.to_string());
        }
    }
    let found = if set.is_empty() {
        found
    } else {
        ours(links).await?
    };
    let known = set.into_iter().filter_map(|(link, limit)| {
        let shaped = Shaped {
            link: link.index,
            limit,
            told: found.get(&link.index)?.clone(),
        };
        Some((link.name.clone(), shaped))
    });
    *shapes = Some(known.collect());
    Ok(held)
}

/// Our disciplines as the kernel tells them, by the index of their link.
async fn ours(links: &Links) -> Result<BTreeMap<u32, Vec<u8>>, LinkError> {
    let all: Vec<TcMessage> = links
        .handle()
        .qdisc()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(LinkError::of("list the queueing disciplines"))?;
    let ours = all.into_iter().filter_map(|message| {
        let (header, attributes) = message.into_parts();
        let options = attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Options(options) => options.into_iter().next(),
                _ => None,
            });
        let mut told = Vec::new();
        if let Some(TcOption::Other(option)) = options {
            told.resize(option.buffer_len(), 0);
            option.emit(&mut told);
        }
        let link = u32::try_from(header.index).ok()?;
        (header.handle == OURS && header.parent == TcHandle::ROOT).then_some((link, told))
    });
    Ok(ours.collect())
}

/// Holds what a TAP's guest receives to a limit.
pub(super) async fn hold(links: &Links, link: &Link, limit: Limit) -> Result<(), LinkError> {
    let mut message = TcMessage::with_index(index(link));
    message.header.handle = OURS;
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![
        TcAttribute::Kind(KIND.to_owned()),
        TcAttribute::Other(DefaultNla::new(OPTIONS, options(limit))),
    ];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    links.request(request).await.map_err(LinkError::of(format!(
        "limit what goes out of {}",
        link.name
    )))
}

async fn lift(links: &Links, link: &Link) -> Result<(), LinkError> {
    let mut delete = links.handle().qdisc().del(index(link));
    let header = &mut delete.message_mut().header;
    (header.handle, header.parent) = (OURS, TcHandle::ROOT);
    let what = LinkError::of(format!("lift the limit of what goes out of {}", link.name));
    delete.execute().await.map_err(what)
}

fn index(link: &Link) -> i32 {
    // The kernel counts them in an `int`.
    i32::try_from(link.index).unwrap_or(0)
}

/// `struct tc_tbf_qopt` and the bursts in bytes, which the kernel prefers to its ticks.
fn options(limit: Limit) -> Vec<u8> {
    let bytes = |kib: u32| kib.saturating_mul(1 << 10);
    let rate = |rate: u32| {
        // `struct tc_ratespec`: cell_log, linklayer, overhead, cell_align, mpu, rate.
        let mut spec = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        spec.extend(rate.to_ne_bytes());
        spec
    };
    let average = bytes(limit.average);
    let peak = limit.peak.map_or(0, bytes);
    let waits = (average / QUEUE_PARTS).max(LEAST_QUEUE);
    let mut parameters = rate(average);
    parameters.extend(if peak == 0 { vec![0; 12] } else { rate(peak) });
    // The limit of the queue; then burst and piece in ticks, which are given in bytes below.
    for word in [waits, 0, 0] {
        parameters.extend(word.to_ne_bytes());
    }
    let mut all = vec![
        DefaultNla::new(PARAMETERS, parameters),
        DefaultNla::new(BURST, bytes(limit.burst).to_ne_bytes().to_vec()),
    ];
    if peak > 0 {
        all.push(DefaultNla::new(PEAK_BURST, PIECE.to_ne_bytes().to_vec()));
    }
    let mut out = vec![0; all.as_slice().buffer_len()];
    all.as_slice().emit(&mut out);
    out
}

/// Why what guests receive cannot be limited here; tried on a TAP of no guest.
pub(super) async fn missing(links: &Links) -> Option<String> {
    let name = format!("vmp{}", std::process::id());
    let tap = tokio::task::spawn_blocking({
        let name = name.clone();
        move || tap::open(&name, 1)
    });
    let tap = match tap.await {
        Ok(Ok(tap)) => tap,
        Ok(Err(error)) => return Some(error.to_string()),
        Err(error) => return Some(error.to_string()),
    };
    let tried = match links.find(&name).await {
        Ok(Some(link)) => hold(links, &link, Limit::new(1_000, None, None)).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    // The kernel takes its time to close one, and the next network tries it under the same name.
    let _ = tokio::task::spawn_blocking(move || drop(tap)).await;
    let error = tried.err()?;
    Some(format!(
        "what guests receive is not limited: the kernel lacks the queueing discipline tbf (module sch_tbf): {error}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_to_the_kernel_in_bytes() {
        let options = options(Limit::new(1_000, Some(2_000), Some(500)));
        // Each attribute has a header of four bytes: length and kind.
        let word = |at: usize| u32::from_ne_bytes(options[at..at + 4].try_into().unwrap());
        assert_eq!((word(4 + 8), word(4 + 12 + 8)), (1_024_000, 2_048_000));
        assert_eq!(word(4 + 24), LEAST_QUEUE);
        assert_eq!(word(40 + 4), 512_000, "the burst");
        assert_eq!(word(40 + 8 + 4), PIECE);
        assert_eq!(options.len(), 40 + 8 + 8);
    }
}
