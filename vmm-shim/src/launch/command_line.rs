//! An argument vector, and the same as lines for a shell.

use std::process::Command;

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

impl CommandLine {
    /// `program` with no arguments yet.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), arguments: Vec::new() }
    }

    /// Adds one argument.
    pub fn push(&mut self, argument: impl Into<String>) {
        self.arguments.push(argument.into());
    }

    /// Adds an option and its value.
    pub fn option(&mut self, name: &str, value: impl Into<String>) {
        self.push(name);
        self.push(value);
    }

    /// Adds arguments as they are.
    pub fn extend(&mut self, arguments: &[String]) {
        self.arguments.extend_from_slice(arguments);
    }

    /// The program's name or path.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Everything after the program.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Ready to spawn.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }

    /// Lines that work when pasted into a POSIX shell: one option a line, joined by backslashes.
    #[must_use]
    pub fn shell(&self) -> String {
        let mut text = quote(&self.program);
        for argument in &self.arguments {
            text.push_str(if argument.starts_with('-') { " \\\n  " } else { " " });
            text.push_str(&quote(argument));
        }
        text
    }
}

/// `word` as the shell reads it back: as it is when it has no special character, else in single quotes.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_reads_back_what_was_pushed() {
        let words = [
            "-a",
            "",
            "two words",
            "it's",
            "$HOME `x` \\ \"q\"",
            "*",
            "a,b=c:d/e.f@g%",
            "-name",
            "new\nline",
            "é",
        ];
        let mut line = CommandLine::new("printf");
        line.push("%s|");
        words.iter().for_each(|word| line.push(*word));
        let script = line.shell();
        let output = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        let wanted = words.map(|word| format!("{word}|")).concat();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), wanted, "{script}");
    }

    #[test]
    fn one_option_a_line() {
        let mut line = CommandLine::new("vmm");
        line.option("-m", "1024M");
        line.option("-append", "a b");
        assert_eq!(line.shell(), "vmm \\\n  -m 1024M \\\n  -append 'a b'");
    }
}
