//! What the demo says: one line for each thing shown; while one is under way, a spinner if a person is looking.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines said, and how many of them tell of a failure.
#[derive(Debug)]
pub(super) struct Report {
    failures: usize,
    steps: usize,
    terminal: bool,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { failures: 0, steps: 0, terminal: std::io::stderr().is_terminal() }
    }

    /// A heading.
    pub(super) fn part(&self, title: &str) {
        println!("\n{title}");
    }

    /// Does something and says how it went: what was seen, or what went wrong.
    pub(super) fn step<E: std::fmt::Display>(
        &mut self,
        what: &str,
        work: impl FnOnce() -> Result<String, E>,
    ) {
        let spinner = self.spinner(what);
        let result = work();
        spinner.finish_and_clear();
        self.steps += 1;
        match result {
            Ok(seen) => println!("  ok    {what}: {seen}"),
            Err(error) => {
                self.failures += 1;
                println!("  FAIL  {what}: {error}");
            }
        }
    }

    /// Does something that takes long and that everything after it needs. `work` says what it is at.
    ///
    /// # Errors
    /// As `work`; nothing is counted then.
    pub(super) fn slow<T, E>(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<(T, String), E>,
    ) -> Result<T, E> {
        let spinner = self.spinner(what);
        let terminal = self.terminal;
        let (made, seen) = work(&mut |line: &str| {
            if terminal {
                spinner.set_message(format!("{what}: {line}"));
            } else {
                println!("        {line}");
            }
        })?;
        spinner.finish_and_clear();
        self.steps += 1;
        println!("  ok    {what}: {seen}");
        Ok(made)
    }

    fn spinner(&self, what: &str) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    pub(super) fn all_well(&self) -> bool {
        self.failures == 0
    }

    /// The last line.
    pub(super) fn verdict(&self) {
        if self.all_well() {
            println!("All {} checks passed; every packet is accounted for.", self.steps);
        } else {
            println!("{} of {} checks failed.", self.failures, self.steps);
        }
    }
}
