//! The plot of how figures grow, as SVG: both axes logarithmic, each figure beside
//! what it was with the fewest VMs, so that flat is flat and linear is a diagonal.

use std::fmt::Write as _;

/// One figure over the number of VMs.
pub(crate) struct Series {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) points: Vec<(usize, f64)>,
}

impl Series {
    /// The exponent with which it grows over the last decade: 0 is flat, 1 linear.
    /// The first decades tell what is there without any VM.
    pub(crate) fn exponent(&self) -> f64 {
        let [.., (few, before), (many, after)] = self.points[..] else {
            return 0.0;
        };
        (after / before).ln() / log(many, few)
    }
}

fn log(many: usize, few: usize) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let ratio = many as f64 / few as f64;
    ratio.ln()
}

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 660.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 500.0;
/// Decades upwards.
const DECADES: i32 = 4;
const COLOURS: [&str; 8] = [
    "#1b6ca8", "#4aa3df", "#2a9d5c", "#c0392b", "#e67e22", "#8e44ad", "#555555", "#b8860b",
];

/// Where a figure is, upwards; below the first decade there is half of one.
fn y(ratio: f64) -> f64 {
    let place = (ratio.max(0.32).log10() + 0.5) / (f64::from(DECADES) + 0.5);
    BOTTOM - place * (BOTTOM - TOP)
}

/// The whole picture.
pub(crate) fn draw(series: &[Series]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let sizes: Vec<usize> = series
        .first()
        .map(|one| one.points.iter().map(|point| point.0).collect())
        .unwrap_or_default();
    let (Some(few), Some(many)) = (sizes.first(), sizes.last()) else {
        return out + "</svg>\n";
    };
    let x = |size: usize| LEFT + log(size, *few) / log(*many, *few) * (RIGHT - LEFT);
    for size in &sizes {
        let at = x(*size);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.0}\" y1=\"{TOP}\" x2=\"{at:.0}\" y2=\"{BOTTOM}\" stroke=\"#dddddd\"/>\
             <text x=\"{at:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{size}</text>",
            BOTTOM + 20.0
        );
    }
    for decade in 0..=DECADES {
        let (at, times) = (y(10_f64.powi(decade)), 10_i32.pow(decade.unsigned_abs()));
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.0}\" x2=\"{RIGHT}\" y2=\"{at:.0}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{times} ×</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"22\">Cost beside that with {few} VMs, over the number of VMs; in \
         brackets the exponent over the last decade</text>"
    );
    legend(&mut out, series, &x);
    out + "</svg>\n"
}

/// The lines, and their names at their ends, kept apart.
fn legend(out: &mut String, series: &[Series], x: &dyn Fn(usize) -> f64) {
    let mut ends: Vec<_> = series.iter().zip(COLOURS).collect();
    let end = |one: &Series| one.points.last().map_or(1.0, |last| last.1) / one.points[0].1;
    ends.sort_by(|a, b| end(b.0).total_cmp(&end(a.0)));
    let mut lowest = TOP - 20.0;
    for (one, colour) in ends {
        let base = one.points[0].1;
        let points: Vec<_> = one
            .points
            .iter()
            .map(|(size, figure)| format!("{:.1},{:.1}", x(*size), y(figure / base)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        lowest = (y(end(one)) + 4.0).max(lowest + 18.0);
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{lowest:.0}\" fill=\"{colour}\">{} [{:.2}]</text>",
            RIGHT + 8.0,
            one.what.replace('<', "&lt;"),
            one.exponent()
        );
    }
}
