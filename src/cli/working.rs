//! Shows on a terminal that something goes on, on standard error; elsewhere nothing.

use std::{borrow::Cow, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows it for as long as it goes on.
pub async fn spinner<T>(what: impl Into<Cow<'static, str>>, work: impl Future<Output = T>) -> T {
    let bar = ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    let done = work.await;
    bar.finish_and_clear();
    done
}

/// A bar for work of a known size.
pub fn progress(what: &'static str, size: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {elapsed}");
    ProgressBar::new(size).with_message(what).with_style(style.expect("a literal template"))
}
