//! Durable POSTs, and reads while VMs start.

use super::{
    fleet::{Fleet, check, new_vm},
    report::Report,
};
use crate::load::{Load, run};
use std::time::Duration;

const LENGTH: Duration = Duration::from_secs(2);

pub(crate) fn measure(report: &mut Report) {
    creates(report, 64, "5,000/s at 64 connections");
    creates(report, 8, "1,000/s at 8");
    creates(report, 1, "");
}

fn creates(report: &mut Report, connections: usize, aim: &'static str) {
    let fleet = Fleet::simulated(&[]);
    let mut answers = 0;
    let mut told = String::new();
    let spent = fleet.cost(|| {
        let load = Load::closed(connections, LENGTH).answered(201);
        let outcome = run(&fleet.target, load, |out, worker, n| {
            fleet.post(out, "/vms", &new_vm(&format!("w{worker}-{n}")));
        });
        check(&outcome);
        answers = outcome.answers;
        told = format!(
            "{:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
            outcome.rate(),
            outcome.ms(0.5),
            outcome.ms(0.99)
        );
    });
    #[allow(clippy::cast_precision_loss)]
    let each = spent.as_secs_f64() * 1e6 / answers as f64;
    report.row(
        format!("durable `POST /vms`, {connections} connections"),
        format!("{told} ({each:.0} µs of CPU)"),
        aim,
    );
}
