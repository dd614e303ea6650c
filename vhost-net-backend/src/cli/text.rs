//! Text for people: numbers, lists, names from elsewhere, wrapped lines.

use std::borrow::Cow;
use std::time::Duration;

/// Columns when the output is no terminal.
pub const WIDTH: usize = 80;

/// Columns to use: the terminal's, else [`WIDTH`].
#[must_use]
pub fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns >= 40).unwrap_or(WIDTH)
}

/// `name` without anything that a terminal would obey or hide: control and format characters are escaped.
#[must_use]
pub fn safe(name: &str) -> Cow<'_, str> {
    let plain = |c: char| c == '\'' || c == '"' || c == '\\' || c.escape_debug().len() == 1;
    if name.chars().all(plain) {
        return Cow::Borrowed(name);
    }
    let escape = |c: char| if plain(c) { c.to_string() } else { c.escape_default().to_string() };
    Cow::Owned(name.chars().map(escape).collect())
}

/// At most 6 characters: `99999`, `123k`, `1.23M`, `45.6G`. Cut, never rounded up.
#[must_use]
pub fn human(count: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if count < 100_000 {
        return count.to_string();
    }
    let mut thousands = count / 1000;
    let mut rest = count % 1000;
    for unit in UNITS {
        if thousands < 1000 {
            return match thousands {
                0..10 => format!("{thousands}.{:02}{unit}", rest / 10),
                10..100 => format!("{thousands}.{}{unit}", rest / 100),
                _ => format!("{thousands}{unit}"),
            };
        }
        rest = thousands % 1000;
        thousands /= 1000;
    }
    count.to_string()
}

/// Bytes in binary units where they divide: `512 MiB`, `1 GiB`.
#[must_use]
pub fn binary(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

/// `1 VM`, `2 VMs`.
#[must_use]
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `3 d 4 h`, `5 min 6 s`, `7 s`: the two largest units.
#[must_use]
pub fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let from = parts.iter().position(|(n, _)| *n > 0).unwrap_or(parts.len() - 1);
    let shown: Vec<_> = parts.iter().skip(from).take(2).map(|(n, unit)| format!("{n} {unit}")).collect();
    shown.join(" ")
}

/// Breaks `text` between words so that no line is longer than `width`, each line after `indent` spaces.
#[must_use]
pub fn wrap(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut line = String::new();
    let mut flush = |line: &mut String| {
        out.push_str(&" ".repeat(indent));
        out.push_str(line);
        out.push('\n');
        line.clear();
    };
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > width {
            flush(&mut line);
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    flush(&mut line);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_the_terminal() {
        for (name, wanted) in [
            ("acme/web1.0", "acme/web1.0"),
            ("Müller & Söhne, \"4711\"", "Müller & Söhne, \"4711\""),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\tc", "a\\nb\\tc"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("x\u{202e}y\u{200b}", "x\\u{202e}y\\u{200b}"),
        ] {
            assert_eq!(safe(name), wanted);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (count, wanted) in [
            (0, "0"),
            (99_999, "99999"),
            (100_000, "100k"),
            (999_999, "999k"),
            (1_000_000, "1.00M"),
            (1_239_999, "1.23M"),
            (45_678_901, "45.6M"),
            (999_999_999_999, "999G"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(human(count), wanted);
            assert!(human(count).len() <= 6);
        }
    }

    #[test]
    fn units() {
        for (bytes, wanted) in [(0, "0 B"), (1000, "1000 B"), (512 << 20, "512 MiB"), (4 << 30, "4 GiB")] {
            assert_eq!(binary(bytes), wanted);
        }
        for (seconds, wanted) in [(0, "0 s"), (61, "1 min 1 s"), (90_000, "1 d 1 h"), (3600, "1 h 0 min")] {
            assert_eq!(uptime(Duration::from_secs(seconds)), wanted);
        }
        assert_eq!((count(1, "VM"), count(2, "VM")), ("1 VM".to_owned(), "2 VMs".to_owned()));
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("aa bb cc", 2, 7), "  aa bb\n  cc\n");
        assert_eq!(wrap("longerthanthis x", 0, 5), "longerthanthis\nx\n");
    }
}
