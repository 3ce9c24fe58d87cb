//! Live progress: bars on a terminal, a line for each thing done elsewhere.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const STEPS: u64 = 1000;

/// All bars of the demo.
#[derive(Debug, Clone, Default)]
pub struct Bars(MultiProgress);

/// One thing that goes on.
#[derive(Debug, Clone)]
pub struct Bar {
    bar: ProgressBar,
    what: String,
}

impl Bars {
    pub fn add(&self, what: &str) -> Bar {
        let style = ProgressStyle::with_template("  {prefix:26} {bar:24} {percent:>3}%  {msg}");
        let bar = self.0.add(ProgressBar::new(STEPS));
        bar.set_style(style.expect("the template is valid").progress_chars("=> "));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Bar { bar, what: what.to_owned() }
    }

    /// A heading between the bars.
    pub fn say(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            // A screen that cannot be written to shows nothing else either.
            let _ = self.0.println(text);
        } else {
            eprintln!("{text}");
        }
    }
}

impl Bar {
    pub fn set(&self, fraction: f64, doing: &str) {
        self.bar.set_position((fraction.clamp(0.0, 1.0) * STEPS as f64) as u64);
        self.doing(doing);
    }

    pub fn doing(&self, doing: &str) {
        self.bar.set_message(shortened(doing, 60));
    }

    pub fn done(&self, outcome: &str) {
        self.bar.set_position(STEPS);
        self.end(outcome);
    }

    pub fn failed(&self, why: &str) {
        self.end(&format!("failed: {why}"));
    }

    fn end(&self, outcome: &str) {
        if std::io::stderr().is_terminal() {
            self.bar.finish_with_message(shortened(outcome, 60));
        } else {
            self.bar.finish_and_clear();
            eprintln!("  {:26} {}", self.what, shortened(outcome, 100));
        }
    }
}

/// On one line, with dots where it was cut.
fn shortened(text: &str, room: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(room) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
