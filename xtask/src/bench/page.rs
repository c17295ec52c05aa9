//! The report as a page for people: the figures, and a plot of each axis along which costs grow. It needs no other file.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::goals::Group;
use super::growth::{self, Point};
use super::report::Report;
use super::table::{kinds, table};

const SIZE: (u32, u32) = (760, 440);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    BLACK,
];

/// The page.
pub(crate) fn page(report: &Report, groups: &[&Group]) -> Result<String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>stage2: costs</title>\n\
         <style>body {{ font: 15px sans-serif; margin: 2em; }} pre {{ font-size: 12px; }}</style></head><body>\n\
         <h1>Costs</h1>\n<p>{} on {}, {}. KVM's round trips contain a full switch between host and guest, ours need none.</p>\n",
        report.emulator, report.cpu, report.compiler
    );
    for group in groups.iter().filter(|group| !group.lines.is_empty()) {
        write!(page, "<h2>{}</h2>\n<pre>{}</pre>\n", group.name, escaped(&table(report, group).0))?;
    }
    write!(page, "<h2>What they consist of</h2>\n<pre>{}</pre>\n", escaped(&kinds(report)))?;
    for (axis, curves) in growth::curves(&report.growth) {
        let curves: Vec<_> = curves.into_iter().collect();
        write!(page, "<h2>Instructions by {}</h2>\n{}\n", escaped(axis), plot(axis, &curves)?)?;
    }
    page += "</body></html>\n";
    Ok(page)
}

/// All curves along an axis, both scales logarithmic.
fn plot(axis: &str, curves: &[(&str, Vec<&Point>)]) -> Result<String> {
    let mut svg = String::new();
    let points = || curves.iter().flat_map(|(_, points)| points);
    let bounds = |of: fn(&Point) -> u64| {
        let (least, most) = (points().map(|point| of(point)).min(), points().map(|point| of(point)).max());
        (least.unwrap_or(1).max(1) as f64, most.unwrap_or(1).max(1) as f64)
    };
    let ((left, right), (bottom, top)) = (bounds(|point| point.at), bounds(|point| point.instructions));
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("cannot plot: {error}");
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(80)
            .build_cartesian_2d((left..right * 1.01).log_scale(), (bottom / 2.0..top * 2.0).log_scale())
            .map_err(failed)?;
        chart.configure_mesh().x_desc(axis).y_desc("instructions").draw().map_err(failed)?;
        for ((name, points), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
            let places: Vec<_> = points.iter().map(|point| (point.at as f64, point.instructions as f64)).collect();
            let dots = places.iter().map(|&place| Circle::new(place, 3, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
            chart
                .draw_series(LineSeries::new(places.clone(), colour.stroke_width(2)))
                .map_err(failed)?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        }
        let mut labels = chart.configure_series_labels();
        labels.background_style(WHITE.mix(0.8)).border_style(BLACK).position(SeriesLabelPosition::UpperLeft);
        labels.draw().map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
