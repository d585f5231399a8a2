//! Loss and accuracy by epoch as a picture: SVG text, drawn without any font or library of the system.

use crate::error::{Error, Result};
use crate::metrics::EpochMetrics;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// A training to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Curves {
    /// What the legend calls it.
    pub name: String,
    /// Its epochs, in order.
    pub epochs: Vec<EpochMetrics>,
}

/// The most trainings in one picture: as many colours as are told apart.
pub const MOST: usize = 7;

/// Okabe and Ito's colours, told apart under every common colour blindness; without their yellow, which a light ground
/// swallows.
const COLOURS: [RGBColor; MOST] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
const INK: RGBColor = RGBColor(31, 35, 40);
const GREY: RGBColor = RGBColor(89, 99, 110);
const FAINT: RGBColor = RGBColor(222, 226, 230);
const FONT: &str = "Helvetica, Arial, sans-serif";
/// Sizes as plotters takes them: in the SVG they are divided by 1.24.
const TEXT: u32 = 17;
const CAPTION: u32 = 22;

const WIDTH: u32 = 960;
const PANEL: u32 = 360;
const LEGEND_ROW: u32 = 26;
/// Up to so many epochs each has a dot.
const DOTTED: usize = 40;

/// A part of the data, and its two figures of an epoch.
#[derive(Clone, Copy)]
enum PartOf {
    Train,
    Validation,
    Test,
}

impl PartOf {
    const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    fn name(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    fn loss(self, epoch: &EpochMetrics) -> Option<f64> {
        match self {
            Self::Train => Some(epoch.loss),
            Self::Validation => epoch.validation_loss,
            Self::Test => epoch.test_loss,
        }
    }

    fn accuracy(self, epoch: &EpochMetrics) -> Option<f64> {
        match self {
            Self::Train => Some(epoch.accuracy),
            Self::Validation => epoch.validation_accuracy,
            Self::Test => epoch.test_accuracy,
        }
        .map(|share| 100.0 * share)
    }

    /// Pixels of a dash and of the gap after it; none is a whole line.
    fn dash(self) -> Option<(u32, u32)> {
        match self {
            Self::Train => None,
            Self::Validation => Some((2, 4)),
            Self::Test => Some((8, 5)),
        }
    }
}

/// One line of a panel, and of the legend.
struct Line<'a> {
    label: String,
    colour: RGBColor,
    part: PartOf,
    curves: &'a Curves,
}

type Figure = fn(PartOf, &EpochMetrics) -> Option<f64>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws losses beside accuracies, the legend below them. With one training the colour says which part of the data a
/// line is of; with several it says which training, and the dashes say which part.
///
/// # Errors
/// [`Error::Failed`] if there is nothing to draw, or more than [`MOST`] trainings.
pub fn svg(runs: &[Curves]) -> Result<String> {
    let lines = lines(runs)?;
    let columns = if runs.len() == 1 { lines.len() } else { lines.len() / runs.len() };
    let rows = lines.len().div_ceil(columns) as u32;
    let height = PANEL + 12 + rows * LEGEND_ROW;
    let mut text = String::new();
    draw(&mut text, height, &lines, columns)
        .map_err(|error| Error::Failed(format!("the curves cannot be drawn: {error}")))?;
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = format!("Loss and accuracy by epoch: {}", names.join(", "));
    // Read aloud where the picture is not seen.
    Ok(text.replacen('>', &format!(">\n<title>{}</title>", escape(&title)), 1))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn lines(runs: &[Curves]) -> Result<Vec<Line<'_>>> {
    if runs.len() > MOST {
        return Err(Error::Failed(format!(
            "{} trainings are too many for one picture; name at most {MOST}",
            runs.len()
        )));
    }
    // A part that only some trainings have keeps its column in the legend for all.
    let there = |part: PartOf| runs.iter().any(|run| run.epochs.iter().any(|e| part.loss(e).is_some()));
    let parts: Vec<PartOf> = PartOf::ALL.into_iter().filter(|&part| there(part)).collect();
    if parts.is_empty() || runs.iter().any(|run| run.epochs.is_empty()) {
        return Err(Error::Failed("there is no finished epoch to draw".into()));
    }
    let one = runs.len() == 1;
    let line = |(at, curves): (usize, &'_ Curves), (k, &part): (usize, &PartOf)| {
        let label =
            if one { part.name().into() } else { format!("{}, {}", short(&curves.name), part.name()) };
        (label, COLOURS[if one { k } else { at }], part)
    };
    let mut lines = Vec::new();
    for run in runs.iter().enumerate() {
        for part in parts.iter().enumerate() {
            let (label, colour, part) = line(run, part);
            lines.push(Line { label, colour, part, curves: run.1 });
        }
    }
    Ok(lines)
}

/// A name that fits a column of the legend.
fn short(name: &str) -> String {
    const LONGEST: usize = 24;
    if name.chars().count() <= LONGEST {
        return name.to_string();
    }
    name.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// A linear axis with its own ticks: plotters' would put some between the epochs.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let digits = match self.ticks[..] {
            [first, second, ..] => decimals(second - first),
            _ => 0,
        };
        format!("{value:.digits$}")
    }
}

type Drawn<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn draw(text: &mut String, height: u32, lines: &[Line<'_>], columns: usize) -> Drawn {
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (panels, below) = root.split_vertically(PANEL);
    let halves = panels.split_evenly((1, 2));
    panel(&halves[0], lines, "Loss", "cross entropy, nats", PartOf::loss)?;
    panel(&halves[1], lines, "Accuracy", "rows classified rightly, %", PartOf::accuracy)?;
    legend(&below, lines, columns)?;
    root.present()?;
    Ok(())
}

fn panel(area: &Area<'_>, lines: &[Line<'_>], title: &str, unit: &str, figure: Figure) -> Drawn {
    let points = |line: &Line<'_>| -> Vec<(f64, f64)> {
        let value = |epoch: &EpochMetrics| Some((f64::from(epoch.epoch), figure(line.part, epoch)?));
        line.curves.epochs.iter().filter_map(value).filter(|(_, y)| y.is_finite()).collect()
    };
    let all: Vec<Vec<(f64, f64)>> = lines.iter().map(points).collect();
    let flat = || all.iter().flatten();
    let last = flat().map(|&(x, _)| x).fold(1.0, f64::max);
    let first = flat().map(|&(x, _)| x).fold(last, f64::min);
    let low = flat().map(|&(_, y)| y).fold(f64::INFINITY, f64::min);
    let high = flat().map(|&(_, y)| y).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let ys = ticks(low, high, 6);
    let bottom = ys.first().copied().unwrap_or(low);
    let top = ys.last().copied().unwrap_or(high);
    let room = if last > first { 0.02 * (last - first) } else { 0.5 };
    let mut xs = ticks(first, last, 10);
    xs.retain(|x| x.fract() == 0.0 && (first..=last).contains(x));
    if !xs.contains(&first) {
        xs.insert(0, first);
    }

    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, CAPTION).into_font().style(FontStyle::Bold).color(&INK))
        .margin(10)
        .margin_right(24)
        .x_label_area_size(48)
        .y_label_area_size(66)
        .build_cartesian_2d(
            Axis { range: first - room..last + room, ticks: xs },
            Axis { range: bottom..top, ticks: ys },
        )?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc(unit)
        .axis_desc_style((FONT, TEXT).into_font().color(&INK))
        .label_style((FONT, TEXT).into_font().color(&INK))
        .axis_style(INK)
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .disable_x_mesh()
        .draw()?;

    for (line, points) in lines.iter().zip(all) {
        let style = line.colour.stroke_width(2);
        if points.len() <= DOTTED {
            let dot = |&(x, y): &(f64, f64)| Circle::new((x, y), 3, line.colour.filled());
            chart.draw_series(points.iter().map(dot))?;
        }
        match line.part.dash() {
            None => chart.draw_series(LineSeries::new(points, style))?,
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points, dash, gap, style))?,
        };
    }
    Ok(())
}

fn legend(area: &Area<'_>, lines: &[Line<'_>], columns: usize) -> Drawn {
    const SAMPLE: i32 = 34;
    let one = lines.len() == columns;
    let column = if one { 160 } else { (WIDTH as i32 - 96) / 3 };
    let text = TextStyle::from((FONT, TEXT).into_font()).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    for (at, line) in lines.iter().enumerate() {
        let x = 76 + (at % columns) as i32 * column;
        let y = (at / columns) as i32 * LEGEND_ROW as i32 + LEGEND_ROW as i32 / 2 + 4;
        let points = [(x, y), (x + SAMPLE, y)];
        let style = line.colour.stroke_width(2);
        match line.part.dash() {
            None => area.draw(&PathElement::new(points, style))?,
            Some((dash, gap)) => area.draw(&DashedPathElement::new(points, dash, gap, style))?,
        }
        area.draw(&Circle::new((x + SAMPLE / 2, y), 3, line.colour.filled()))?;
        area.draw(&Text::new(line.label.clone(), (x + SAMPLE + 10, y), text.clone()))?;
    }
    if let (true, Some(line)) = (one, lines.first()) {
        let text = text.color(&GREY).pos(Pos::new(HPos::Right, VPos::Center));
        let at = (WIDTH as i32 - 24, LEGEND_ROW as i32 / 2 + 4);
        area.draw(&Text::new(short(&line.curves.name), at, text))?;
    }
    Ok(())
}

/// Round numbers from at most `low` to at least `high`, some `count` of them: multiples of 1, 2, 2.5 or 5 times a power of
/// ten.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    // Values that are all the same have a scale of their own size.
    let span = if high > low { high - low } else { high.abs().max(1.0) * 0.1 };
    let rough = span / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    let last = if last > first { last } else { first + 1.0 };
    // A few at most: the span is `count` steps or less.
    let steps = ((last - first) as usize).min(4 * count);
    (0..=steps).map(|k| (first + k as f64) * step).collect()
}

/// Digits behind the point that tell multiples of `step` apart.
fn decimals(step: f64) -> usize {
    (0..6)
        .find(|&digits| {
            let scaled = step * 10f64.powi(digits as i32);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.abs()
        })
        .unwrap_or(6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        assert_eq!(
            ticks(0.06, 0.61, 6),
            [0.0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.5, 0.6000000000000001, 0.7000000000000001]
        );
        assert_eq!(ticks(66.3, 97.6, 6), [60.0, 70.0, 80.0, 90.0, 100.0]);
        for (low, high) in [(0.5, 0.5), (0.0, 0.0), (1e-9, 2e-9), (-3.0, 1e6), (1.0, 1.0 + 1e-12)] {
            let ticks = ticks(low, high, 6);
            assert!((2..=30).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks[0] <= low && *ticks.last().unwrap() >= high, "{low} {high}: {ticks:?}");
        }
        assert_eq!((decimals(0.1), decimals(2.5), decimals(10.0)), (1, 1, 0));
    }
}
