//! Figures, each beside its limit, as a table and as JSON.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One thing that was measured.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// `None`: there is no target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// What the same machine did at the same time without the product.
#[derive(Debug, Clone, Serialize)]
pub struct Limit {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    /// The figure as a share of it.
    pub ratio: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case", tag = "of", content = "bound")]
pub enum Target {
    /// The ratio to the limit is at least this.
    Ratio(f64),
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Serialize)]
pub struct Report {
    conditions: Conditions,
    figures: Vec<Figure>,
}

#[derive(Debug, Serialize)]
struct Conditions {
    cores: usize,
    /// Processes that wanted to run in the last minute: more than cores means that others were measured too.
    load_average: Option<f64>,
    postgres: &'static str,
    job: &'static str,
    version: &'static str,
    /// Figures of a debug build say nothing.
    build: &'static str,
}

impl Figure {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, limit: None, target: None, met: None }
    }

    pub fn beside(mut self, name: &'static str, limit: f64, unit: &'static str) -> Self {
        self.limit = Some(Limit { name, value: limit, unit, ratio: self.value / limit });
        self
    }

    pub fn target(mut self, target: Target) -> Self {
        self.met = match target {
            Target::Ratio(bound) => self.limit.as_ref().map(|limit| limit.ratio >= bound),
            Target::AtLeast(bound) => Some(self.value >= bound),
            Target::AtMost(bound) => Some(self.value <= bound),
        };
        self.target = Some(target);
        self
    }
}

impl Report {
    pub fn new(figures: Vec<Figure>) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let conditions = Conditions {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load_average: load.and_then(|load| load.split(' ').next()?.parse().ok()),
            postgres: "fsync on, synchronous_commit on (claims alone commit asynchronously), logged tables, autovacuum \
                       on, log files made beforehand as on a server that has been up",
            job: "200 bytes of arguments, a result, every layer of the production worker",
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug: these figures say nothing" } else { "release" },
        };
        Self { conditions, figures }
    }

    pub fn missed(&self) -> usize {
        self.figures.iter().filter(|figure| figure.met == Some(false)).count()
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["figure", "measured", "limit", "ratio", "target", ""]);
        for figure in &self.figures {
            let limit = figure.limit.as_ref();
            table.add_row([
                figure.name.clone(),
                format!("{} {}", number(figure.value), figure.unit),
                limit
                    .map(|limit| format!("{} {} ({})", number(limit.value), limit.unit, limit.name))
                    .unwrap_or_default(),
                limit.map(|limit| format!("{:.3}", limit.ratio)).unwrap_or_default(),
                figure.target.map(Target::text).unwrap_or_default(),
                figure.met.map(|met| if met { "ok" } else { "missed" }).unwrap_or_default().to_owned(),
            ]);
        }
        for column in [1, 3] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let Conditions { cores, load_average, postgres, job, version, build } = &self.conditions;
        let load = load_average.map(|load| format!(", load {load}")).unwrap_or_default();
        format!("{table}\n{version}, {build}; {cores} cores{load}; Postgres: {postgres}; each job: {job}.")
    }
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::Ratio(bound) => format!("ratio >= {bound}"),
            Self::AtLeast(bound) => format!(">= {}", number(bound)),
            Self::AtMost(bound) => format!("<= {}", number(bound)),
        }
    }
}

/// Three significant digits, thousands apart: `48,200`, `1.27`.
fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let decimals = if value.abs() < 10.0 { 2 } else { 1 };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 && digit.is_ascii_digit() {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in
            [(1.274, "1.27"), (42.51, "42.5"), (999.0, "999"), (48_211.7, "48,212"), (1e7, "10,000,000")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_figure_knows_whether_it_met_its_target() {
        let figure = |target| Figure::new("f", 30.0, "jobs/s").beside("l", 100.0, "rows/s").target(target).met;
        assert_eq!(figure(Target::Ratio(0.3)), Some(true));
        assert_eq!(figure(Target::Ratio(0.31)), Some(false));
        assert_eq!(figure(Target::AtMost(29.0)), Some(false));
        assert_eq!(figure(Target::AtLeast(30.0)), Some(true));
        assert_eq!(Figure::new("f", 1.0, "s").met, None);
    }
}
