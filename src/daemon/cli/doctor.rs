//! `emberd doctor`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::doctor::{Finding, Verdict, examine};
use super::super::error::Error;
use super::model::print;
use super::settings::Settings;

#[derive(Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    settings: Settings,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Look at the files below this directory, a recorded machine
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

pub(super) fn run(doctor: &Doctor) -> Result<(), Error> {
    let findings = examine(&doctor.root, &doctor.settings.load()?);
    let problems = findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count();
    if doctor.json {
        let report = json!({"version": env!("CARGO_PKG_VERSION"), "problems": problems, "findings": findings});
        print(&format!("{report:#}\n"))?;
    } else {
        print(&page(&findings))?;
    }
    match problems {
        0 => Ok(()),
        1 => Err(Error::failed("there is a problem")),
        more => Err(Error::Failed(format!("there are {more} problems"))),
    }
}

fn page(findings: &[Finding]) -> String {
    let mut page = String::new();
    for Finding { about, verdict, found, remedy } in findings {
        let mark = match verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "WARNING",
            Verdict::Problem => "PROBLEM",
        };
        let _ = writeln!(page, "{mark:8} {about:16} {found}");
        if let Some(remedy) = remedy {
            let _ = writeln!(page, "{:8} {:16} -> {remedy}", "", "");
        }
    }
    page
}
