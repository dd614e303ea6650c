//! `vmrouter docs DIR`: man pages and shell completions of both programs, made from their command lines, where each shell and
//! `man` look for them below a `share` folder.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::text::{count, safe};
use super::{Failure, Page, packet_stats, vmrouter};

/// Below `share`, for each shell.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Fish, "fish/vendor_completions.d"),
    (Shell::Zsh, "zsh/site-functions"),
];

/// Writes them; the page says how many.
///
/// # Errors
/// A file or folder cannot be written.
pub fn page(share: &Path) -> Result<Page, Failure> {
    let shown = share.display().to_string();
    let shown = safe(&shown);
    let failed = |error| Failure::failed(format!("cannot write below {shown}: {error}"));
    let mut files = 0;
    for command in [vmrouter::Cli::command(), packet_stats::Cli::command()] {
        files += write(&command, share).map_err(failed)?;
    }
    Ok(Page::of(format!("{} below {shown}\n", count(files, "file"))))
}

/// Gives the number of files.
fn write(command: &Command, share: &Path) -> io::Result<usize> {
    let manual = share.join("man/man1");
    fs::create_dir_all(&manual)?;
    let pages = man_pages(command.clone().disable_help_subcommand(true));
    for (name, text) in &pages {
        fs::write(manual.join(name), text)?;
    }
    for (shell, folder) in COMPLETIONS {
        let folder = share.join(folder);
        fs::create_dir_all(&folder)?;
        let name = command.get_name().to_owned();
        clap_complete::generate_to(shell, &mut command.clone(), name, folder)?;
    }
    Ok(pages.len() + COMPLETIONS.len())
}

/// File names and texts: the program's page, and one for each of its commands.
fn man_pages(mut command: Command) -> Vec<(String, Vec<u8>)> {
    command.build();
    let mut pages = Vec::new();
    let mut next = vec![command];
    while let Some(command) = next.pop() {
        next.extend(command.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
        let page = clap_mangen::Man::new(command);
        let mut text = Vec::new();
        // A vector takes everything.
        if page.render(&mut text).is_ok() {
            pages.push((page.get_filename(), text));
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page_and_every_shell_its_completions() {
        let share = tempfile::tempdir().unwrap();
        let said = page(share.path()).unwrap().text;
        let mut files = 0;
        let commands = vmrouter::Cli::command();
        for command in commands.get_subcommands() {
            let page = share.path().join(format!("man/man1/vmrouter-{}.1", command.get_name()));
            let text = fs::read_to_string(&page).unwrap();
            assert!(text.contains(".SH SYNOPSIS") && text.contains("vmrouter"), "{}", page.display());
            files += 1;
        }
        for name in ["man/man1/vmrouter.1", "man/man1/packet-stats.1"] {
            assert!(fs::read_to_string(share.path().join(name)).unwrap().contains("Exit codes"), "{name}");
        }
        for name in
            ["bash-completion/completions/vmrouter.bash", "fish/vendor_completions.d/packet-stats.fish"]
        {
            assert!(fs::read_to_string(share.path().join(name)).unwrap().contains("run-dir"), "{name}");
        }
        assert!(
            fs::read_to_string(share.path().join("zsh/site-functions/_vmrouter"))
                .unwrap()
                .contains("#compdef")
        );
        assert!(files > 8 && said.contains("files below"), "{said}");
    }
}
