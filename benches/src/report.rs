//! Tables and JSON of what was measured.

use std::fmt::Write as _;

use serde::Serialize;

use crate::figures::{CPU, Durability, Figures, Load, P50, P99, P999, PEAK, RATE, SYNCS};

/// One line: who, under which promise, and every round's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub durability: Durability,
    pub rounds: Vec<Figures>,
    pub median: Figures,
}

/// One comparison under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub row: u8,
    pub title: String,
    pub load: Load,
    pub lines: Vec<Line>,
    pub ratios: Vec<Ratio>,
}

/// `figure` of one line divided by that of another, medians both.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    pub text: String,
    pub figure: &'static str,
    pub value: f64,
    /// What the project wants to reach, in words; empty when nothing is asked.
    pub goal: String,
    pub reached: Option<bool>,
}

/// A goal on a ratio.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Comparison {
    #[must_use]
    pub fn new(row: u8, title: impl Into<String>, load: Load) -> Self {
        Self { row, title: title.into(), load, lines: Vec::new(), ratios: Vec::new() }
    }

    /// Adds one round of one contender.
    pub fn add(&mut self, name: &str, durability: Durability, figures: Figures) {
        let line = match self.lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line,
            None => {
                let median = Figures::default();
                self.lines.push(Line { name: name.to_owned(), durability, rounds: Vec::new(), median });
                self.lines.last_mut().expect("a line was pushed")
            }
        };
        line.rounds.push(figures);
        line.median = Figures::median(&line.rounds);
    }

    #[must_use]
    pub fn median(&self, name: &str, figure: &str) -> Option<f64> {
        self.lines.iter().find(|line| line.name == name)?.median.get(figure)
    }

    /// Adds a ratio of medians; nothing when one of the two was not measured.
    pub fn ratio(&mut self, figure: &'static str, of: &str, to: &str, goal: Goal) {
        let (Some(of_value), Some(to_value)) = (self.median(of, figure), self.median(to, figure)) else {
            return;
        };
        let text = format!("{of} / {to}");
        self.judge(text, figure, of_value / to_value, goal);
    }

    /// Adds a figure of one line with its goal.
    pub fn judge(&mut self, text: String, figure: &'static str, value: f64, goal: Goal) {
        let (goal, reached) = match goal {
            Goal::None => (String::new(), None),
            Goal::AtLeast(bound) => (format!("≥ {bound}"), Some(value >= bound)),
            Goal::AtMost(bound) => (format!("≤ {bound}"), Some(value <= bound)),
        };
        self.ratios.push(Ratio { text, figure, value, goal, reached });
    }

    /// A Markdown section.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let mut columns: Vec<&'static str> = Vec::new();
        for name in [RATE, P50, P99, P999, CPU, SYNCS, PEAK] {
            if self.lines.iter().any(|line| line.median.get(name).is_some()) {
                columns.push(name);
            }
        }
        for line in &self.lines {
            for name in line.median.0.keys() {
                if !columns.contains(name) {
                    columns.push(name);
                }
            }
        }
        let Load { message_bytes, clients, in_flight } = self.load;
        // Writing to a String cannot fail.
        writeln!(out, "### Row {}: {}\n", self.row, self.title).ok();
        writeln!(
            out,
            "{message_bytes} B, {clients} client(s), {in_flight} in flight each, medians of {} round(s).\n",
            self.lines.iter().map(|line| line.rounds.len()).max().unwrap_or(0)
        )
        .ok();
        writeln!(out, "| who | durability | {} |", columns.join(" | ")).ok();
        writeln!(out, "| --- | --- |{}", " ---: |".repeat(columns.len())).ok();
        for line in &self.lines {
            write!(out, "| {} | {} |", line.name, line.durability.name()).ok();
            for column in &columns {
                match line.median.get(column) {
                    Some(value) => write!(out, " {} |", digits(value)).ok(),
                    None => write!(out, " |").ok(),
                };
            }
            out.push('\n');
        }
        if !self.ratios.is_empty() {
            out.push('\n');
        }
        for ratio in &self.ratios {
            let verdict = match ratio.reached {
                None => String::new(),
                Some(true) => format!(" (goal {}: reached)", ratio.goal),
                Some(false) => format!(" (goal {}: NOT reached)", ratio.goal),
            };
            writeln!(out, "* {} {}: {}{verdict}", ratio.figure, ratio.text, digits(ratio.value)).ok();
        }
        out
    }
}

/// Three significant digits, thousands apart.
fn digits(value: f64) -> String {
    if value.abs() < 100.0 {
        let places = if value.abs() >= 10.0 {
            1
        } else if value.abs() >= 1.0 {
            2
        } else {
            4
        };
        return format!("{value:.places$}");
    }
    let whole = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    if value < 0.0 { format!("-{out}") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(digits(1_234_567.8), "1 234 568");
        assert_eq!(digits(61.25), "61.2");
        assert_eq!(digits(0.123_45), "0.1235");
    }

    #[test]
    fn a_ratio_is_of_medians_and_says_whether_its_goal_is_reached() {
        let mut comparison = Comparison::new(1, "t", Load { message_bytes: 1, clients: 1, in_flight: 1 });
        for (us, peer) in [(10.0, 1.0), (30.0, 3.0), (20.0, 2.0)] {
            let mut figures = Figures::default();
            figures.set("per_second", us);
            comparison.add("us", Durability::Disk, figures);
            let mut figures = Figures::default();
            figures.set("per_second", peer);
            comparison.add("peer", Durability::Os, figures);
        }
        comparison.ratio("per_second", "us", "peer", Goal::AtLeast(10.0));
        assert_eq!(comparison.ratios[0].value, 10.0);
        assert_eq!(comparison.ratios[0].reached, Some(true));
    }
}
