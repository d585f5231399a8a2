//! How far a long piece of work is: a bar on a terminal, now and then a line elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use recurve::metrics::Metrics;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Seconds between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Progress of one epoch or one download on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// Nothing is shown before the first call of [`Self::batches`] or [`Self::bytes`].
    pub fn new() -> Self {
        Self { bar: None, last_line: Instant::now() }
    }

    fn bar(&mut self, length: u64, template: &str) -> &ProgressBar {
        self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar
        })
    }

    /// Some batches are done, the first of them `elapsed` ago.
    pub fn batches(
        &mut self,
        epoch: u32,
        epochs: u32,
        metrics: &Metrics,
        of: u64,
        elapsed: Duration,
        resumed: u64,
    ) {
        let done = metrics.batches - resumed;
        let rate = metrics.examples as f64 * (done as f64 / metrics.batches.max(1) as f64)
            / elapsed.as_secs_f64().max(1e-9);
        let message = format!(
            "loss {:.4}  accuracy {:5.2} %  {rate:.0} examples/s",
            metrics.loss(),
            100.0 * metrics.accuracy()
        );
        if std::io::stderr().is_terminal() {
            let template =
                format!("epoch {epoch}/{epochs} [{{bar:24}}] {{pos}}/{{len}}  {{msg}}  ETA {{eta}}");
            let bar = self.bar(of, &template);
            bar.set_message(message);
            bar.set_position(metrics.batches);
        } else if self.last_line.elapsed() >= PLAIN_EVERY && metrics.batches < of {
            self.last_line = Instant::now();
            let left = (of - metrics.batches) as f64 * elapsed.as_secs_f64() / done.max(1) as f64;
            eprintln!("epoch {epoch}/{epochs}  {}/{of}  {message}  ETA {left:.0} s", metrics.batches);
        }
    }

    /// Some bytes have arrived.
    #[cfg(feature = "fetch")]
    pub fn bytes(&mut self, name: &str, done: u64, of: u64) {
        if std::io::stderr().is_terminal() {
            let template = "{msg} [{bar:24}] {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}";
            let bar = self.bar(of, template);
            bar.set_message(name.to_string());
            bar.set_position(done);
        } else if self.last_line.elapsed() >= PLAIN_EVERY {
            self.last_line = Instant::now();
            eprintln!("{name}: {done} of {of} bytes");
        }
    }

    /// Takes the bar off the screen.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
