//! Colours, where a person looks.

use std::io::IsTerminal as _;

/// Colours or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint(pub bool);

/// What a piece of text is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// All is well.
    Good,
    /// Worth a look.
    Warning,
    /// Something is broken.
    Bad,
}

impl Paint {
    /// Colours on a terminal, unless `NO_COLOR` is set to anything (<https://no-color.org>).
    #[must_use]
    pub fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && !no_colour())
    }

    /// The same for standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self(std::io::stderr().is_terminal() && !no_colour())
    }

    /// `text` in that tone.
    #[must_use]
    pub fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
