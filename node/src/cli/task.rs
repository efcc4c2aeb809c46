//! `task …`, `dlq …` and `policy …`: tasks of a running node, by its administrative subjects.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::client::{ServerArguments, Session, request_failure};
use crate::cli::exit::Failure;
use crate::cli::output::{Output, cell, columns, fields};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog task ls --phase open
  beamlog task show 17
  beamlog task show 6f1c2a70-0000-4c03-9a0c-0305e82c3301      # an assignment id, or a request id
  beamlog task retry 17
  beamlog task cancel 17")]
pub(crate) struct TaskArguments {
    #[command(subcommand)]
    pub(crate) command: TaskCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// List tasks, the newest first.
    #[command(visible_alias = "list")]
    Ls {
        /// Only those: open, queued, assigned, success, error, timeout or cancelled.
        #[arg(long, value_name = "PHASE")]
        phase: Option<String>,
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
        /// Only those of a run.
        #[arg(long, value_name = "RUN_ID")]
        run: Option<String>,
        #[arg(long, default_value_t = 100, value_name = "COUNT")]
        limit: u32,
    },
    /// Show a task and its story.
    Show {
        /// Its number, an assignment id of it, its request id, or its run id.
        task: String,
    },
    /// End a task that has no result yet.
    Cancel { task: String },
    /// Give a task out again, to another worker if there is one.
    Retry { task: String },
    /// List the workers that are there.
    Workers,
    /// How providers and models do: success, latency, cost, time in the queue.
    Figures,
    /// What does not work as it should, why, and what suffers from it.
    Health,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog dlq ls
  beamlog dlq show 3
  beamlog dlq replay 3
  beamlog dlq replay --all --reason MAXDELIVER_EXHAUSTED
  beamlog dlq purge --all")]
pub(crate) struct DlqArguments {
    #[command(subcommand)]
    pub(crate) command: DlqCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List dead letters, the newest first.
    #[command(visible_alias = "list")]
    Ls {
        /// Only those, like PROCESSING_ERROR or VALIDATION_FAILED.
        #[arg(long, value_name = "REASON")]
        reason: Option<String>,
        #[arg(long, default_value_t = 100, value_name = "COUNT")]
        limit: u32,
    },
    /// Show a dead letter; secrets are masked.
    Show { number: u64 },
    /// Begin its task anew.
    Replay {
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        number: Option<u64>,
        /// Every one that was not replayed yet.
        #[arg(long)]
        all: bool,
        #[arg(long, value_name = "REASON", requires = "all")]
        reason: Option<String>,
        /// Even if it was replayed before.
        #[arg(long)]
        again: bool,
    },
    /// Remove it.
    Purge {
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        number: Option<u64>,
        #[arg(long)]
        all: bool,
        #[arg(long, value_name = "REASON", requires = "all")]
        reason: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog policy put acme default policy.json
  beamlog policy ls
  beamlog policy show acme default
  beamlog policy explain acme default --context '{\"session_id\": \"s-1\"}'")]
pub(crate) struct PolicyArguments {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List policies.
    #[command(visible_alias = "list")]
    Ls {
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Show a policy.
    Show { tenant: String, policy: String },
    /// Put a policy in place; tenant * is everybody.
    Put { tenant: String, policy: String, file: PathBuf },
    /// Remove a policy.
    Rm { tenant: String, policy: String },
    /// Decide without recording it, and say why.
    Explain {
        tenant: String,
        policy: String,
        /// The request's payload, in JSON.
        #[arg(long, default_value = "{}", value_name = "JSON")]
        payload: String,
        /// The request's context, in JSON.
        #[arg(long, default_value = "{}", value_name = "JSON")]
        context: String,
    },
}

/// One administrative request.
async fn ask(session: &Session, name: &str, body: &Value) -> Result<Value, Failure> {
    let subject = format!("beamline.router.v1.admin.{name}");
    let message = session
        .client
        .request(subject, Bytes::from(body.to_string()))
        .await
        .map_err(|e| request_failure(&e, "tasks (is the node started with --tasks?)"))?;
    let answer: Value = serde_json::from_slice(&message.payload)
        .map_err(|e| Failure::failed(format!("the answer to {name} is not JSON: {e}")))?;
    if answer["ok"] == false {
        let error = &answer["error"];
        return Err(Failure::failed(format!(
            "{} ({})",
            error["message"].as_str().unwrap_or("refused without a reason"),
            error["code"].as_str().unwrap_or("no code")
        )));
    }
    Ok(answer)
}

fn table(rows: &Value, names: &[&str]) -> String {
    let rows: Vec<Vec<String>> = rows
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| names.iter().map(|name| cell(&row[*name])).collect())
        .collect();
    columns(names, &rows)
}

pub(crate) async fn task(arguments: TaskArguments, output: Output) -> Result<(), Failure> {
    let session = arguments.server.connect().await?;
    match arguments.command {
        TaskCommand::Ls { phase, tenant, run, limit } => {
            let body = json!({"phase": phase, "tenant_id": tenant, "run_id": run, "limit": limit});
            let answer = ask(&session, "list_tasks", &body).await?;
            let names = [
                "task",
                "phase",
                "tenant_id",
                "job_type",
                "provider_id",
                "deliveries",
                "failures",
                "request_id",
            ];
            output.value(&answer["tasks"], |rows| table(rows, &names))
        }
        TaskCommand::Show { task } => {
            let answer = ask(&session, "get_task", &json!({"task": task})).await?;
            output.value(&answer["task"], |task| {
                let mut shown = task.clone();
                let story = shown["story"].take();
                if let Value::Object(map) = &mut shown {
                    map.remove("story");
                }
                format!("{}\n{}", fields(&shown), table(&story, &["at", "what"]))
            })
        }
        TaskCommand::Cancel { task } => done(&session, "cancel_task", json!({"task": task}), output).await,
        TaskCommand::Retry { task } => done(&session, "retry_task", json!({"task": task}), output).await,
        TaskCommand::Workers => {
            let answer = ask(&session, "list_workers", &json!({})).await?;
            let names = ["connection", "worker_id", "status", "load", "tasks", "subscriptions", "misses"];
            output.value(&answer["workers"], |rows| table(rows, &names))
        }
        TaskCommand::Figures => {
            let answer = ask(&session, "get_figures", &json!({"limit": 1_000})).await?;
            let figures = json!({"providers": answer["providers"], "models": answer["models"]});
            let names = ["calls", "success_rate", "latency_ms", "queued_ms", "cost", "cost_total"];
            output.value(&figures, |figures| {
                let providers = [&["tenant_id", "provider_id"][..], &names].concat();
                let models = [&["provider_id", "model"][..], &names].concat();
                let providers = table(&figures["providers"], &providers);
                format!("{providers}\n{}", table(&figures["models"], &models))
            })
        }
        TaskCommand::Health => {
            let answer = ask(&session, "get_degraded", &json!({})).await?;
            let names = ["part", "name", "state", "cause", "affects"];
            output.value(&answer["degraded"], |rows| {
                if rows.as_array().is_some_and(Vec::is_empty) {
                    return "everything works as it should".to_owned();
                }
                table(rows, &names)
            })
        }
    }
}

async fn done(session: &Session, name: &str, body: Value, output: Output) -> Result<(), Failure> {
    let mut answer = ask(session, name, &body).await?;
    if let Value::Object(map) = &mut answer {
        map.remove("ok");
    }
    output.value(&answer, fields)
}

pub(crate) async fn dlq(arguments: DlqArguments, output: Output) -> Result<(), Failure> {
    let session = arguments.server.connect().await?;
    match arguments.command {
        DlqCommand::Ls { reason, limit } => {
            let answer = ask(&session, "list_dlq", &json!({"reason": reason, "limit": limit})).await?;
            let names =
                ["dead_letter", "reason", "code", "subject", "tenant_id", "request_id", "can_be_replayed"];
            output.value(&answer["dead_letters"], |rows| table(rows, &names))
        }
        DlqCommand::Show { number } => {
            let answer = ask(&session, "get_dlq", &json!({"dead_letter": number})).await?;
            output.value(&answer["dead_letter"], fields)
        }
        DlqCommand::Replay { number, all, reason, again } => {
            let body = json!({"dead_letter": number, "all": all, "reason": reason, "again": again});
            done(&session, "replay_dlq", body, output).await
        }
        DlqCommand::Purge { number, all, reason } => {
            let body = json!({"dead_letter": number, "all": all, "reason": reason});
            done(&session, "purge_dlq", body, output).await
        }
    }
}

pub(crate) async fn policy(arguments: PolicyArguments, output: Output) -> Result<(), Failure> {
    // What is wrong here needs no server to be found out.
    let parse = |name: &str, text: &str| {
        serde_json::from_str::<Value>(text)
            .map_err(|e| Failure::cannot_start(format!("--{name} is not JSON: {e}")))
    };
    let (name, body) = match &arguments.command {
        PolicyCommand::Ls { tenant } => ("list_policies", json!({"tenant_id": tenant, "limit": 1000})),
        PolicyCommand::Show { tenant, policy } => {
            ("get_policy", json!({"tenant_id": tenant, "policy_id": policy}))
        }
        PolicyCommand::Put { tenant, policy, file } => {
            let text = std::fs::read_to_string(file)
                .map_err(|e| Failure::cannot_start(format!("reading {}: {e}", file.display())))?;
            let document: Value = serde_json::from_str(&text)
                .map_err(|e| Failure::cannot_start(format!("{} is not JSON: {e}", file.display())))?;
            (
                "upsert_policy",
                json!({"tenant_id": tenant, "policy_id": policy, "policy": document, "by": "beamlog policy"}),
            )
        }
        PolicyCommand::Rm { tenant, policy } => {
            ("delete_policy", json!({"tenant_id": tenant, "policy_id": policy, "by": "beamlog policy"}))
        }
        PolicyCommand::Explain { tenant, policy, payload, context } => {
            let (payload, context) = (parse("payload", payload)?, parse("context", context)?);
            let body =
                json!({"tenant_id": tenant, "policy_id": policy, "payload": payload, "context": context});
            ("dry_run_pipeline", body)
        }
    };
    let session = arguments.server.connect().await?;
    match arguments.command {
        PolicyCommand::Ls { .. } => {
            let answer = ask(&session, name, &body).await?;
            let names = ["tenant_id", "policy_id", "version", "changed_at"];
            output.value(&answer["policies"], |rows| table(rows, &names))
        }
        PolicyCommand::Show { .. } => {
            let answer = ask(&session, name, &body).await?;
            output.value(&answer["policy"], |policy| format!("{policy:#}\n"))
        }
        PolicyCommand::Explain { .. } => {
            let answer = ask(&session, name, &body).await?;
            output.value(&answer["result"], |result| {
                let steps = result["explanation"].as_array().into_iter().flatten().map(cell);
                let decision = fields(&result["decision"]);
                format!("{decision}\n{}\n", steps.collect::<Vec<_>>().join("\n"))
            })
        }
        PolicyCommand::Put { .. } | PolicyCommand::Rm { .. } => done(&session, name, body, output).await,
    }
}
