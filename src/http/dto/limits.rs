//! How fast a network card may be, in the API: libvirt's words and units, from the guest's point
//! of view.

use crate::http::fields::Fields;
use serde::Serialize;
use utoipa::ToSchema;
use vman_model::network::{
    Limit, NicLimits,
    limits::{MAX_BURST_KIB, MAX_RATE_KIB, MIN_BURST_KIB},
};

/// How fast a network card may be. A direction that is not said has no limit.
#[derive(Serialize, ToSchema)]
#[schema(as = NicLimits)]
pub(crate) struct LimitsBody {
    /// Of what the guest receives; more waits.
    inbound: Option<LimitBody>,
    /// Of what the guest sends; more is dropped.
    outbound: Option<OutboundBody>,
}

/// The limit of what a guest receives.
#[derive(Serialize, ToSchema)]
#[schema(as = InboundLimit)]
pub(crate) struct LimitBody {
    /// KiB/s on average.
    #[schema(minimum = 1, maximum = 4_000_000)]
    average: u32,
    /// KiB/s at most within a burst, more than the average; as fast as can be if it is not said.
    #[schema(minimum = 1, maximum = 4_000_000)]
    peak: Option<u32>,
    /// KiB that pass at once after a pause; what passes in a second, if it is not said.
    #[schema(minimum = 64, maximum = 1_048_576, required = false)]
    burst: u32,
}

/// The limit of what a guest sends.
#[derive(Serialize, ToSchema)]
#[schema(as = OutboundLimit)]
pub(crate) struct OutboundBody {
    /// KiB/s on average.
    #[schema(minimum = 1, maximum = 4_000_000)]
    average: u32,
    /// KiB that pass at once after a pause, at least what passes in a second; so much, if it is not
    /// said.
    #[schema(minimum = 64, maximum = 1_048_576, required = false)]
    burst: u32,
}

impl LimitsBody {
    /// None where nothing is limited.
    pub(crate) fn of(limits: &NicLimits) -> Option<Self> {
        let inbound = limits.inbound.map(|limit| LimitBody {
            average: limit.average,
            peak: limit.peak,
            burst: limit.burst,
        });
        let outbound = limits.outbound.map(|limit| OutboundBody {
            average: limit.average,
            burst: limit.burst,
        });
        (!limits.is_empty()).then_some(Self { inbound, outbound })
    }
}

/// Reads the field `limits`; none if it is not given.
pub(crate) fn read_limits(fields: &mut Fields) -> Option<NicLimits> {
    fields.object("limits", |fields| {
        Some(NicLimits {
            inbound: fields.object("inbound", |fields| read_limit(fields, true)),
            outbound: fields.object("outbound", |fields| read_limit(fields, false)),
        })
    })
}

fn read_limit(fields: &mut Fields, inbound: bool) -> Option<Limit> {
    fields.require("average");
    let average = fields.whole_u32("average", 1..=MAX_RATE_KIB);
    if !inbound && fields.has("peak") {
        fields.wrong(
            "peak",
            "is not for what a guest sends: more than the average is dropped; leave it out",
        );
    }
    let peak = fields.whole_u32("peak", 1..=MAX_RATE_KIB);
    let burst = fields.whole_u32("burst", MIN_BURST_KIB..=MAX_BURST_KIB);
    let limit = Limit::new(average?, peak, burst);
    if let Some(why) = limit.wrong_peak().filter(|_| inbound) {
        fields.wrong("peak", why);
    }
    Some(limit)
}
