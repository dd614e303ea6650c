//! How a command ends: what it prints, and the exit code that scripts rely on.

use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::control::client::ClientError;

/// Exit codes of both binaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    #[default]
    Ok = 0,
    /// There is no such thing, or it failed.
    Failed = 1,
    /// Wrong command line or wrong topology file.
    Usage = 2,
    /// The daemon does not run, or does not talk to us.
    NotRunning = 3,
    /// It would change something (`plan`).
    Differs = 4,
    /// A thread of the daemon panicked; it ended without tidying up (sysexits.h: EX_SOFTWARE).
    Broken = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotRunning => 3,
            Exit::Differs => 4,
            Exit::Broken => 70,
        })
    }
}

/// What a command has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// For standard output; ends with a newline unless empty.
    pub text: String,
    /// For standard error, a line each.
    pub notes: Vec<String>,
    /// The exit code.
    pub exit: Exit,
}

impl Page {
    /// Only text, and success.
    #[must_use]
    pub fn of(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

/// A command that could not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What is wrong, in lower case, for standard error.
    pub message: String,
}

impl Failure {
    /// There is no such thing, or it failed.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into() }
    }

    /// Wrong command line.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match error {
            ClientError::NoSuch(_) | ClientError::Refused(_) => Exit::Failed,
            ClientError::Wrong(_) => Exit::Usage,
            ClientError::NotRunning(_)
            | ClientError::Denied(_)
            | ClientError::Silent(_)
            | ClientError::Answer { .. } => Exit::NotRunning,
        };
        Self { exit, message: error.to_string() }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// Prints the outcome of `program` and gives its exit code. A reader that hangs up (`| head`) is not an error.
pub(crate) fn print(program: &str, outcome: Result<Page, Failure>) -> Exit {
    let page = outcome.unwrap_or_else(|Failure { exit, message }| {
        // A report of several lines, such as all problems of a file, speaks for itself.
        let note = if message.contains('\n') { message } else { format!("{program}: {message}") };
        Page { text: String::new(), notes: vec![note], exit }
    });
    let mut errors = io::stderr().lock();
    for note in &page.notes {
        let _ = writeln!(errors, "{}", note.trim_end());
    }
    let mut out = io::stdout().lock();
    match out.write_all(page.text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(errors, "{program}: cannot write: {error}");
            Exit::Failed
        }
        _ => page.exit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_client_errors() {
        let path = || "/x".into();
        for (error, wanted) in [
            (ClientError::NoSuch("no such VM".into()), Exit::Failed),
            (ClientError::NotRunning(path()), Exit::NotRunning),
            (ClientError::Denied(path()), Exit::NotRunning),
            (ClientError::Silent(path()), Exit::NotRunning),
            (ClientError::Answer { path: path(), why: String::new() }, Exit::NotRunning),
        ] {
            assert_eq!(Failure::from(error).exit, wanted);
        }
    }
}
