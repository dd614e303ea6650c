//! Files that nobody would write: answered in bounded time, never with a panic.

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use topology::own::{self, OwnProblems};

const FULL: &str = include_str!("../examples/full.toml");

/// Generous for a debug build on a busy machine; what is quadratic takes minutes.
const BOUND: Duration = Duration::from_secs(20);

#[test]
fn large_and_deep_files_are_answered_in_time() {
    let network = "version = 1\n[tenant.t.network.lan]\nsubnets = [\"10.0.0.0/8\"]\n";
    let nic = "nic = [{ network = \"lan\" }]\n";
    let up_to_cap = |head: &str, line: &dyn Fn(usize) -> String| {
        let mut text = head.to_owned();
        for line in (0..).map(line) {
            if text.len() + line.len() > 1 << 20 {
                break;
            }
            text.push_str(&line);
        }
        text
    };
    let files = [
        ("lines", "a = 1\n".repeat(100_000)),
        ("arrays", format!("version = {}", "[".repeat(100_000))),
        ("tables", format!("a{} = 1", ".a".repeat(100_000))),
        ("inline", format!("a = {}", "{a = ".repeat(100_000))),
        ("unknown keys", up_to_cap("", &|index| format!("k{index} = 1\n"))),
        ("machines", up_to_cap(network, &|index| format!("[tenant.t.vm.v{index}]\n{nic}"))),
        ("tenants", up_to_cap("version = 1\n", &|index| format!("[tenant.t{index}]\n"))),
        (
            "bad references",
            up_to_cap(network, &|index| format!("[[tenant.t.vm.v{index}.nic]]\nnetwork = \"x\"\n")),
        ),
        (
            "routes",
            up_to_cap(network, &|index| format!("[[tenant.t.route]]\nto = \"x{index}\"\nvia = \"x\"\n")),
        ),
        ("name servers", {
            let servers: String = (0..90_000).map(|_| "\"10.0.0.1\",").collect();
            format!(
                "version = 1\n[tenant.t.network.n]\nsubnets = [\"10.1.0.0/24\"]\ndns = {{ upstream = [{servers}] }}\n"
            )
        }),
        ("gateways", {
            let gateways: String = (0..90_000).map(|_| "\"10.1.0.1\",").collect();
            format!(
                "version = 1\n[tenant.t.network.n]\nsubnets = [\"10.1.0.0/24\"]\ngateway = [{gateways}]\n"
            )
        }),
        ("one line", {
            let list = "{network=\"x\"},".repeat(60_000);
            format!("version = 1\ntenant.t.vm.v.nic = [{list}]\n")
        }),
    ];
    for (name, text) in files {
        let start = Instant::now();
        let problems = topology::parse(name, &text).expect_err(name);
        let report = problems.render(false);
        assert!(start.elapsed() < BOUND, "{name} took {:?}", start.elapsed());
        assert!(report.len() < 100_000, "{name}: {} bytes", report.len());
    }
}

/// Each level is a call of every walk over the tree, and the daemon's threads have 2 MiB of stack.
#[test]
fn a_deep_tree_is_refused_before_it_is_built() {
    let key = format!("k{}", ".k".repeat(70));
    let deep = format!("{}1{}", format!("{{ {key} = ").repeat(70), " }".repeat(70));
    let operator = "version = 1\n[tenant.acme]\nowner = { uid = 1001 }\n";
    let answers = move || {
        let operators = format!("{operator}[x]\ny = {deep}\n");
        let own = format!("[tenant.acme]\nvm = {deep}\n");
        let whole = own::with_own(operator, "acme", &own).unwrap();
        let refused = own::parse_own("t", &whole, "acme").unwrap_err();
        let OwnProblems::Own(refused) = refused else { panic!("{refused:?}") };
        assert!(
            refused.contains("acme's own file:2:") && refused.contains("no file needs more"),
            "{refused}"
        );
        for (text, wanted) in [(&operators, "t:5:"), (&whole, "acme's own file:2:")] {
            let refused = topology::parse("t", text).unwrap_err().to_string();
            assert!(
                refused.starts_with(wanted) && refused.ends_with("nested deeper than 32 levels"),
                "{refused}"
            );
        }
        assert_eq!(own::carry_on("t", &operators, &whole).unwrap(), operators);
        assert_eq!((own::run_dir(&operators), own::show(&operators, "acme")), (None, None));
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(answers).unwrap().join().unwrap();
}

#[test]
fn files_that_cannot_be_read() {
    let dir = std::env::temp_dir().join(format!("topology-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let cap = usize::try_from(topology::MAX_BYTES).unwrap();
    let blank = |bytes: usize| {
        "version = 1\n".bytes().chain(std::iter::repeat_n(b'\n', bytes - 12)).collect::<Vec<u8>>()
    };
    for (path, wanted) in [
        (dir.join("missing"), "0:0: cannot read the file"),
        (dir.clone(), "0:0: not a regular file"),
        (Path::new("/dev/null").to_owned(), "0:0: not a regular file"),
        (file("latin1", b"version = 1\n# f\xfcr\n"), "2:4: not UTF-8"),
        (file("large", &blank(cap + 1)), "0:0: the file is larger than 1 MiB"),
    ] {
        let problems = topology::read(&path).expect_err(wanted);
        assert!(problems.to_string().contains(wanted), "{problems}");
        assert!(problems.render(false).contains(wanted.split_once(": ").unwrap().1));
    }
    assert!(topology::read(&file("full", &blank(cap))).is_ok());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn report_shows_no_control_characters() {
    let text = "version = 1\n[tenant.\"\\u001b[31m\"]\n\"\\u001b[2J\" = 1\n[router]\nname = \"\\u001b\"\npoll = \"\\u001b\"\n";
    let problems = topology::parse("a\u{1b}b", text).expect_err("bad names");
    assert_eq!(problems.items.len(), 4);
    assert!(!problems.render(false).contains('\u{1b}'), "{}", problems.render(false));
    // The control characters above ASCII, in the line that is quoted.
    let problems = topology::parse("a", "version = \u{9b}31m\u{81}\n").expect_err("no number");
    assert!(!problems.render(false).contains(['\u{81}', '\u{9b}']), "{:?}", problems.render(false));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Pieces of the full example cut out, doubled and overwritten.
    #[test]
    fn mutated_examples_never_panic(
        edits in prop::collection::vec((0..FULL.len(), 0..40_usize, "[\\[\\]{}\"=,./:0-9a-z\\n -]{0,12}"), 1..6),
    ) {
        let mut text: Vec<char> = FULL.chars().collect();
        for (at, len, insert) in edits {
            let at = at.min(text.len());
            let end = (at + len).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(problems) = topology::parse("mutated", &text) {
            prop_assert!(!problems.items.is_empty());
            prop_assert!(problems.render(false).starts_with("error: "));
        }
    }

    /// Values of the full example swapped for others of its values: TOML that reads, and means nonsense.
    #[test]
    fn swapped_values_never_panic(swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..8)) {
        let mut lines: Vec<String> = FULL.lines().map(str::to_owned).collect();
        let values: Vec<usize> = (0..lines.len()).filter(|&at| lines[at].contains(" = ")).collect();
        for (to, from) in swaps {
            let (to, from) = (*to.get(&values), *from.get(&values));
            let value = lines[from].split_once(" = ").map(|(_, value)| value.to_owned()).unwrap();
            let key = lines[to].split_once(" = ").map(|(key, _)| key.to_owned()).unwrap();
            lines[to] = format!("{key} = {value}");
        }
        if let Err(problems) = topology::parse("swapped", &lines.join("\n")) {
            prop_assert!(problems.render(false).starts_with("error: "));
        }
    }
}
