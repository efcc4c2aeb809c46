//! `link …`: links to NATS clusters of a running node, through its admin server.

mod arguments;
mod http;
mod show;

pub(crate) use arguments::{AdminArguments, LinkArguments};
pub(crate) use http::AdminClient;

use serde_json::{Value, json};

use crate::cli::exit::Failure;
use crate::cli::link::arguments::LinkCommand;
use crate::cli::output::Output;
use crate::cli::stream::{checked_name, done};

pub(crate) async fn link(arguments: LinkArguments, output: Output) -> Result<(), Failure> {
    let admin = AdminClient::new(&arguments.access)?;
    match arguments.command {
        LinkCommand::Add { name, settings, replace } => {
            let path = path(&name, "")?;
            let body = settings.table(&name)?;
            admin.put(&path, &body, !replace).await?;
            done(output, json!({ "link": name, "added": true }), &format!("added link {name}"))
        }
        LinkCommand::Rm { name } => {
            admin.request("DELETE", &path(&name, "")?).await?;
            done(output, json!({ "link": name, "removed": true }), &format!("removed link {name}"))
        }
        LinkCommand::Ls => output.value(&admin.request("GET", "/links").await?["links"], show::list),
        LinkCommand::Status { name: None } => {
            output.value(&admin.request("GET", "/links").await?["links"], show::statuses)
        }
        LinkCommand::Status { name: Some(name) } => {
            output.value(&admin.request("GET", &path(&name, "")?).await?, show::status)
        }
        LinkCommand::Pause { name } => act(&admin, &name, "pause", "paused", output).await,
        LinkCommand::Resume { name } => act(&admin, &name, "resume", "resumed", output).await,
        LinkCommand::Resync { name } => {
            act(&admin, &name, "resync", "comparing both sides anew:", output).await
        }
        LinkCommand::Diff { name } => {
            let answer = admin.request("GET", &path(&name, "/diff")?).await?;
            output.value(&answer, show::diff)?;
            // What cannot be told may differ.
            let differs = |rule: &Value| rule["missing"].as_u64() != Some(0) || !rule["problem"].is_null();
            let rules = answer["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
            if rules.iter().any(differs) {
                return Err(Failure::failed(
                    "the two sides are not known to be the same; `beamlog link status` says what is waiting",
                ));
            }
            Ok(())
        }
    }
}

async fn act(
    admin: &AdminClient,
    name: &str,
    action: &str,
    did: &str,
    output: Output,
) -> Result<(), Failure> {
    let answer = admin.request("POST", &path(name, &format!("/{action}"))?).await?;
    done(output, answer, &format!("{did} link {name}"))
}

fn path(name: &str, rest: &str) -> Result<String, Failure> {
    Ok(format!("/links/{}{rest}", checked_name("link", name)?))
}
