//! `packet-stats mirrors`: copies of frames, and those that found no room.

use super::packet_stats::{Context, json};
use super::paint::Tone;
use super::table::{Cell, Table};
use super::text::{human, safe};
use super::{Exit, Failure, Page};
use crate::control::api::{Mirror, Mirrors};
use crate::control::client;

/// The page.
///
/// # Errors
/// When the daemon is not running, or no such tenant has a mirror.
pub fn page(context: &Context) -> Result<Page, Failure> {
    let mut found: Mirrors = client::get(&context.run_dir, "/v1/mirrors")?;
    found.mirrors.retain(|row| context.tenant.as_ref().is_none_or(|tenant| *tenant == row.tenant));
    if found.mirrors.is_empty() && context.tenant.is_some() {
        return Err(Failure { exit: Exit::Failed, message: "no mirror of such a tenant".to_owned() });
    }
    Ok(Page::of(if context.json { json(&found)? } else { render(context, &found.mirrors) }))
}

fn render(context: &Context, mirrors: &[Mirror]) -> String {
    if mirrors.is_empty() {
        return "The topology has no mirror.\n".to_owned();
    }
    let number = |n| if context.exact { u64::to_string(&n) } else { human(n) };
    let mut table = Table::new(&["MIRROR", "FROM", "TO", "FRAMES", "BYTES", "MISSED"]);
    for Mirror { tenant, name, from, to, frames, bytes, missed, .. } in mirrors {
        let tone = if *missed > 0 { Tone::Warning } else { Tone::Plain };
        table.row(vec![
            Cell::text(safe(&format!("{tenant}/{name}"))),
            Cell::text(safe(&from.join(" "))),
            Cell::text(safe(to)),
            Cell::number(number(*frames)),
            Cell::number(number(*bytes)),
            Cell::number(number(*missed)).tone(tone),
        ]);
    }
    let mut out = table.render(context.paint, context.width);
    for Mirror { tenant, name, error, .. } in mirrors {
        let Some(error) = error else { continue };
        let line = format!("{tenant}/{name}: {error}");
        out.push_str(&format!("\n{}\n", context.paint.paint(&safe(&line), Tone::Bad)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{sample, serve};

    #[test]
    fn a_line_for_each_and_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let view = sample::view(folder.path());
        view.mirrors[0].copied.add(3, 300, 1);
        *view.mirrors[0].trouble.lock().unwrap() = Some("no space".to_owned());
        let _server = serve(crate::daemon::Board::new(view)).unwrap();
        let mut context = Context::of(folder.path());
        context.exact = true;
        let text = page(&context).unwrap().text;
        let wanted = "\
MIRROR    FROM     TO         FRAMES  BYTES  MISSED
acme/ids  vm:web1  vm:web2.0       3    300       1

acme/ids: no space
";
        assert_eq!(text, wanted);
        context.json = true;
        let answer: Mirrors = serde_json::from_str(&page(&context).unwrap().text).unwrap();
        assert_eq!((answer.mirrors[0].missed, answer.mirrors[0].error.as_deref()), (1, Some("no space")));
        context.tenant = Some("globex".to_owned());
        assert_eq!(page(&context).unwrap_err().exit, Exit::Failed);
    }
}
