//! A boot as a picture: a bar for each stage, service and phase, along the time since the kernel's start.

use std::fmt::Write as _;
use std::time::Duration;

use super::phases::{Boot, Span, UNIT};

/// In the picture's own units, a pixel each unless it is scaled.
const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 20.0;
const LABELS: f64 = 260.0;
const ROW: f64 = 22.0;
const TOP: f64 = 80.0;

/// So many services fit, the ones that took longest; the others took next to nothing.
const MOST_UNITS: usize = 14;

/// The picture, as SVG.
pub(super) fn svg(boot: &Boot, title: &str) -> String {
    let rows = rows(boot);
    let end = rows.iter().map(|row| row.span.end).max().unwrap_or_default().max(Duration::from_millis(1));
    let height = TOP + ROW * rows.len() as f64 + MARGIN;
    let x = |at: Duration| LABELS + at.as_secs_f64() / end.as_secs_f64() * (WIDTH - LABELS - 4.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    text(&mut svg, MARGIN, 28.0, "font-size=\"16\"", title);
    grid(&mut svg, end, height, &x);
    for (index, Row { kind, span }) in rows.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        // A bar that can be seen, however short.
        let width = (x(span.end) - x(span.begin)).max(1.5);
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"/>",
            x(span.begin),
            y + 3.0,
            ROW - 6.0,
            kind.colour()
        );
        text(&mut svg, MARGIN + kind.indent(), y + 15.0, "", &span.name);
        text(&mut svg, x(span.begin) + width + 5.0, y + 15.0, "fill=\"#666\"", &seconds(span.took()));
    }
    mark(&mut svg, x(boot.registered), height, &format!("registered after {}", seconds(boot.registered)));
    svg.push_str("</svg>\n");
    svg
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stage,
    Unit,
    Own,
    Phase,
}

impl Kind {
    fn colour(self) -> &'static str {
        match self {
            Self::Stage => "#9aa5b1",
            Self::Unit => "#7ba7d9",
            Self::Own => "#d9822b",
            Self::Phase => "#f0b775",
        }
    }

    fn indent(self) -> f64 {
        match self {
            Self::Stage => 0.0,
            Self::Unit | Self::Own => 10.0,
            Self::Phase => 24.0,
        }
    }
}

struct Row<'a> {
    kind: Kind,
    span: &'a Span,
}

/// Stages, then services by their beginnings, the binary's own with its phases below.
fn rows(boot: &Boot) -> Vec<Row<'_>> {
    let mut times: Vec<Duration> = boot.units.iter().map(Span::took).collect();
    times.sort();
    let least = times.iter().rev().nth(MOST_UNITS - 1).copied().unwrap_or_default();
    let mut rows: Vec<Row<'_>> = boot.stages.iter().map(|span| Row { kind: Kind::Stage, span }).collect();
    for span in boot
        .units
        .iter()
        .filter(|unit| unit.name.starts_with("kiln-") || unit.took() >= least.max(Duration::from_millis(1)))
    {
        let own = span.name == UNIT;
        rows.push(Row { kind: if own { Kind::Own } else { Kind::Unit }, span });
        if own {
            rows.extend(boot.phases.iter().map(|span| Row { kind: Kind::Phase, span }));
        }
    }
    rows
}

/// A line every so many seconds, of which there are ten at most.
fn grid(svg: &mut String, end: Duration, height: f64, x: &impl Fn(Duration) -> f64) {
    let step = [1, 2, 5, 10, 20, 30, 60, 120].into_iter().find(|step| end.as_secs() / step <= 10).unwrap_or(300);
    for at in (0..=end.as_secs()).step_by(step as usize) {
        let x = x(Duration::from_secs(at));
        let bottom = height - MARGIN;
        let _ = writeln!(svg, "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#e4e7eb\"/>");
        text(svg, x, TOP - 8.0, "fill=\"#666\" text-anchor=\"middle\"", &format!("{at} s"));
    }
}

fn mark(svg: &mut String, x: f64, height: f64, words: &str) {
    let bottom = height - MARGIN;
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" y1=\"52\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#c2410c\" stroke-dasharray=\"4 3\"/>"
    );
    text(svg, x, 48.0, "fill=\"#c2410c\" text-anchor=\"middle\"", words);
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::super::phases::tests::PRINTED;
    use super::*;

    #[test]
    fn a_picture_is_well_formed_and_shows_every_stage_unit_and_phase_where_it_was() {
        let mut boot = Boot::read(PRINTED).unwrap();
        boot.units[0].name = r"systemd-fsck@dev-disk-by\x2dlabel-<root>&.service".to_owned();
        let svg = svg(&boot, "a boot of <this> & that");
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        for name in [
            boot.units[0].name.as_str(),
            UNIT,
            "kernel",
            "services",
            "start",
            "identify",
            "mint",
            "register",
            "config.sh",
        ] {
            assert!(texts.contains(&name), "{name} is not in {texts:?}");
        }
        assert!(texts.contains(&"registered after 7.00 s"), "{texts:?}");
        let number = |node: roxmltree::Node<'_, '_>, name: &str| node.attribute(name).unwrap().parse::<f64>().unwrap();
        let bars: Vec<(f64, f64)> = document
            .descendants()
            .filter(|node| node.attribute("rx").is_some())
            .map(|node| (number(node, "x"), number(node, "x") + number(node, "width")))
            .collect();
        assert_eq!(bars.len(), 2 + 2 + 6);
        // The services begin where the kernel ends; nothing is outside the picture.
        assert!((bars[0].1 - bars[1].0).abs() < 0.2, "{bars:?}");
        assert!(bars.iter().all(|(begin, end)| *begin >= LABELS && *end <= WIDTH), "{bars:?}");
    }
}
