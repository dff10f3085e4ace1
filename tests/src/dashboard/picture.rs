//! The open panels of a Grafana dashboard as a picture: Prometheus' answers in SVG, for documents. Grafana itself draws more.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{prometheus::Prometheus, svg::escaped};

/// Pixels of a column and of a row of Grafana's grid.
const GRID: (f64, f64) = (44.0, 32.0);
/// Between panels.
const GAP: f64 = 6.0;
const TITLE_HEIGHT: f64 = 26.0;
/// Beside and below the lines, for numbers.
const AXIS: (f64, f64) = (74.0, 24.0);
const GROUND: &str = "#111217";
const PANEL: &str = "#1b1d23";
const GRID_LINE: &str = "#33363e";
const INK: &str = "#d7dae0";
/// Colours that the colour-blind tell apart too (Okabe and Ito), lightened for a dark ground.
const COLOURS: [&str; 7] = ["#56b4e9", "#e69f00", "#2bb58a", "#f0e442", "#e8743b", "#cc79a7", "#9aa0ab"];

/// Points of a line, most of the time.
const POINTS: u32 = 75;

/// A rectangle: left, top, width, height.
type Area = (f64, f64, f64, f64);
/// A line: its legend, and its points by seconds.
type Line = (String, Vec<(f64, f64)>);

/// Returns the picture. `evaluable` replaces the variables of an expression; the lines are of the last `seconds`.
pub fn svg(
    dashboard: &Value,
    prometheus: &Prometheus,
    seconds: u32,
    evaluable: impl Fn(&str) -> String,
) -> Result<String> {
    let (mut body, mut bottom) = (String::new(), 0.0_f64);
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let at = |name: &str| panel["gridPos"][name].as_f64().context("no place");
        let (x, y, width, height) = (at("x")?, at("y")?, at("w")?, at("h")?);
        let area = (x * GRID.0 + GAP, y * GRID.1 + GAP, width * GRID.0 - GAP, height * GRID.1 - GAP);
        let kind = panel["type"].as_str().unwrap_or_default();
        if kind == "row" {
            if panel["collapsed"] != true {
                let title = panel["title"].as_str().unwrap_or_default();
                text(&mut body, title, (area.0 + 4.0, area.1 + 17.0), "start", "font-size=\"14\"");
            }
            continue;
        }
        bottom = bottom.max(area.1 + area.3 + GAP);
        frame(&mut body, panel["title"].as_str().unwrap_or_default(), area);
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
        let mut lines = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = evaluable(target["expr"].as_str().context("no expression")?);
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            lines.extend(read(prometheus, &expression, legend, seconds)?);
        }
        match kind {
            "stat" => stat(&mut body, panel, &lines, unit, area)?,
            "timeseries" => {
                let is_stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal";
                draw_lines(&mut body, lines, unit, is_stacked, area);
            }
            "heatmap" => heat_map(&mut body, &lines, area),
            _ => {}
        }
    }
    ensure!(bottom > 0.0, "no panel is open");
    let width = 24.0 * GRID.0 + GAP;
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {bottom}\" width=\"{width}\" height=\"{bottom}\" \
         font-family=\"Inter, system-ui, 'DejaVu Sans', sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{GROUND}\"/>\n{body}</svg>\n"
    ))
}

/// Returns the answers to an expression over the last `seconds`, one line a series.
fn read(prometheus: &Prometheus, expression: &str, legend: &str, seconds: u32) -> Result<Vec<Line>> {
    let mut lines = BTreeMap::<BTreeMap<String, String>, Vec<(f64, f64)>>::new();
    let step = (seconds / POINTS).max(1);
    for (labels, time, value) in prometheus.samples(&format!("({expression})[{seconds}s:{step}s]"))? {
        if value.is_finite() {
            lines.entry(labels).or_default().push((time, value));
        }
    }
    Ok(lines.into_iter().map(|(labels, points)| (named(legend, &labels), points)).collect())
}

/// Replaces `{{label}}` by the label's value.
fn named(legend: &str, labels: &BTreeMap<String, String>) -> String {
    labels.iter().fold(legend.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value))
}

fn frame(svg: &mut String, title: &str, (x, y, width, height): Area) {
    rectangle(svg, (x, y, width, height), PANEL, 1.0);
    text(svg, title, (x + 10.0, y + 17.0), "start", "font-size=\"11\" font-weight=\"600\"");
}

fn stat(svg: &mut String, panel: &Value, lines: &[Line], unit: &str, (x, y, width, height): Area) -> Result<()> {
    let last = lines.first().and_then(|(_, points)| points.last()).map(|(_, value)| *value);
    let value = last.with_context(|| format!("no answer in {}", panel["title"]))?;
    let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().context("no thresholds")?;
    let reached = steps.iter().rfind(|step| step["value"].as_f64().is_none_or(|bound| value >= bound));
    let colour = reached.and_then(|step| step["color"].as_str()).unwrap_or(INK);
    let area = (x, y + TITLE_HEIGHT, width, height - TITLE_HEIGHT);
    rectangle(svg, area, colour, 0.55);
    let (middle, base) = (x + width / 2.0, area.1 + area.3 / 2.0 + 10.0);
    text(svg, &formatted(value, unit), (middle, base), "middle", "font-size=\"28\" font-weight=\"600\"");
    Ok(())
}

fn draw_lines(svg: &mut String, mut lines: Vec<Line>, unit: &str, is_stacked: bool, area: Area) {
    if is_stacked {
        let mut below = BTreeMap::<u64, f64>::new();
        for (time, value) in lines.iter_mut().flat_map(|(_, points)| points) {
            let sum = below.entry(time.to_bits()).or_default();
            *sum += *value;
            *value = *sum;
        }
    }
    let plot = plot_area(area);
    let points = || lines.iter().flat_map(|(_, points)| points);
    let largest = points().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    let (first, last) = span(points());
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let y = plot.1 + plot.3 * (1.0 - share);
        rectangle(svg, (plot.0, y, plot.2, 0.6), GRID_LINE, 1.0);
        text(svg, &formatted(largest * share, unit), (plot.0 - 6.0, y + 4.0), "end", "");
    }
    let mut legend_x = plot.0;
    // What is stacked highest is behind the others.
    for (number, (_, points)) in lines.iter().enumerate().rev() {
        let colour = COLOURS[number % COLOURS.len()];
        let place = |(time, value): &(f64, f64)| {
            let x = plot.0 + plot.2 * (time - first) / (last - first);
            format!("{x:.1},{:.1}", plot.1 + plot.3 * (1.0 - value / largest))
        };
        let path: Vec<String> = points.iter().map(place).collect();
        let path = path.join(" ");
        if is_stacked {
            let base = plot.1 + plot.3;
            let closed = format!("{},{base} {path} {},{base}", plot.0, plot.0 + plot.2);
            let _ = writeln!(svg, "<polygon points=\"{closed}\" fill=\"{colour}\" opacity=\"0.3\"/>");
        }
        let _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    }
    for (number, (legend, _)) in lines.iter().enumerate() {
        let y = area.1 + area.3 - 9.0;
        rectangle(svg, (legend_x, y - 5.0, 12.0, 3.0), COLOURS[number % COLOURS.len()], 1.0);
        text(svg, legend, (legend_x + 16.0, y), "start", "");
        legend_x += 34.0 + 7.0 * legend.chars().count() as f64;
    }
}

/// Draws the share of requests by bucket, lines being cumulative and their legends the bounds.
fn heat_map(svg: &mut String, lines: &[Line], area: Area) {
    let mut bounds: Vec<(f64, &Line)> =
        lines.iter().filter_map(|line| Some((line.0.replace("+Inf", "inf").parse().ok()?, line))).collect();
    bounds.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut columns = BTreeMap::<u64, Vec<f64>>::new();
    for (row, (_, (_, points))) in bounds.iter().enumerate() {
        for (time, value) in points {
            let cells = columns.entry(time.to_bits()).or_default();
            cells.resize(row, cells.last().copied().unwrap_or(0.0));
            cells.push(*value);
        }
    }
    let rates: Vec<Vec<f64>> = columns
        .into_values()
        .map(|sums| sums.iter().scan(0.0, |below, sum| Some(sum - std::mem::replace(below, *sum))).collect())
        .collect();
    let is_used = |row: usize| rates.iter().any(|column| column.get(row).is_some_and(|rate| *rate > 0.0));
    let used = || (0..bounds.len()).filter(|row| is_used(*row));
    let (Some(lowest), Some(highest)) = (used().min(), used().max()) else { return };
    let largest = rates.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let plot = plot_area(area);
    let (width, height) = (plot.2 / rates.len() as f64, plot.3 / (highest - lowest + 1) as f64);
    for (row, (bound, _)) in bounds.iter().enumerate().take(highest + 1).skip(lowest) {
        let y = plot.1 + plot.3 - height * (row - lowest + 1) as f64;
        text(svg, &formatted(*bound, "ms"), (plot.0 - 6.0, y + 4.0), "end", "");
        for (column, rates) in rates.iter().enumerate() {
            let rate = rates.get(row).copied().unwrap_or(0.0);
            if rate > 0.0 {
                let cell = (plot.0 + width * column as f64, y, width + 0.5, height - 1.0);
                rectangle(svg, cell, COLOURS[0], 0.15 + 0.85 * (rate / largest).sqrt());
            }
        }
    }
}

fn plot_area((x, y, width, height): Area) -> Area {
    (x + AXIS.0, y + TITLE_HEIGHT + 8.0, width - AXIS.0 - 12.0, height - TITLE_HEIGHT - AXIS.1 - 12.0)
}

/// Returns the first and the last time, which are not equal.
fn span<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> (f64, f64) {
    let (first, last) =
        points.fold((f64::MAX, f64::MIN), |(first, last), (time, _)| (first.min(*time), last.max(*time)));
    if last > first { (first, last) } else { (first, first + 1.0) }
}

fn rectangle(svg: &mut String, (x, y, width, height): Area, fill: &str, opacity: f64) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" opacity=\"{opacity:.2}\"/>"
    );
}

fn text(svg: &mut String, text: &str, (x, y): (f64, f64), anchor: &str, style: &str) {
    let text = escaped(text);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{text}</text>");
}

/// Returns a value in one of Grafana's units.
fn formatted(value: f64, unit: &str) -> String {
    let (value, unit) = match unit {
        "percentunit" => (100.0 * value, "%"),
        "reqps" => (value, " req/s"),
        "cps" => (value, " /s"),
        "ms" if value >= 1000.0 => (value / 1000.0, " s"),
        "ms" => (value, " ms"),
        "bytes" if value >= 1024.0 => (value / 1024.0, " KiB"),
        "bytes" => (value, " B"),
        _ => (value, ""),
    };
    if value.is_infinite() {
        return "∞".to_owned();
    }
    let decimals = if value == 0.0 || value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
    let number = format!("{value:.decimals$}");
    let short = if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { &number };
    format!("{short}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short() {
        let values = [
            (0.0, "reqps", "0 req/s"),
            (12.34, "ms", "12.3 ms"),
            (1500.0, "ms", "1.5 s"),
            (0.987, "percentunit", "98.7%"),
        ];
        for (value, unit, short) in values {
            assert_eq!(formatted(value, unit), short);
        }
    }
}
