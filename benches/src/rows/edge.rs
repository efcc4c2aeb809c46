//! Row 14: an edge that was cut off catches up with its hub over QUIC, in both directions, beside what one client
//! publishes to the node where the messages are. Two whole nodes share the machine while they catch up; each stores
//! and syncs what it gets.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::Context;
use async_nats::jetstream::stream::Config;

use super::link::{IN_FLIGHT, MESSAGE_BYTES, publish, until};
use super::{Plan, RowError};
use crate::contender::Contender;
use crate::figures::{Durability, Figures, Load, RATE};
use crate::report::{Comparison, Goal};

const US: &str = "caught up";
const LOCAL: &str = "published there";

pub fn row_14(plan: &Plan) -> Result<Vec<Comparison>, RowError> {
    let messages: u64 = if plan.quick { 50_000 } else { 1_000_000 };
    let load = Load { message_bytes: MESSAGE_BYTES as u64, clients: 1, in_flight: IN_FLIGHT as u64 };
    let mut out = Comparison::new(14, "an edge catches up with its hub: export", load.clone());
    let mut back = Comparison::new(14, "an edge catches up with its hub: import", load);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    plan.each_round(&[Contender::Beamlog], |contender| {
        let folder = plan.folder()?;
        let program = plan.programs.of(contender);
        let round = runtime.block_on(round(program, folder.path(), messages))?;
        for (comparison, [local, caught_up]) in [(&mut out, round[0]), (&mut back, round[1])] {
            for (name, elapsed) in [(LOCAL, local), (US, caught_up)] {
                let mut figures = Figures::default();
                figures.set(RATE, messages as f64 / elapsed.as_secs_f64());
                comparison.add(name, Durability::Disk, figures);
            }
        }
        Ok(())
    })?;
    for comparison in [&mut out, &mut back] {
        comparison.ratio(RATE, US, LOCAL, Goal::AtLeast(0.6));
    }
    Ok(vec![out, back])
}

/// A node of its own; killed when dropped.
struct Node {
    child: Child,
    context: Context,
    admin: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Node {
    async fn start(program: &Path, folder: &Path, name: &str, flags: &[&str]) -> Result<Self, RowError> {
        let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
        let mut child = Command::new(program)
            .args(["serve", "--announce", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"])
            .arg(folder.join(format!("{name}.data")))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let said: serde_json::Value = serde_json::from_str(&line)?;
        let text = |key: &str| said[key].as_str().map(str::to_owned).ok_or("it does not say where it is");
        let (listen, admin) = (text("listen")?, text("admin")?);
        let context = async_nats::jetstream::new(async_nats::connect(listen).await?);
        Ok(Self { child, context, admin })
    }

    async fn stream(&self, name: &str, subject: &str) -> Result<(), RowError> {
        let config = Config { name: name.into(), subjects: vec![subject.into()], ..Config::default() };
        self.context.create_stream(config).await?;
        Ok(())
    }

    async fn messages(&self, stream: &str) -> u64 {
        // Of an import the stream is made by the link.
        let stream = self.context.get_stream(stream).await;
        stream.map_or(0, |stream| stream.cached_info().state.messages)
    }
}

fn run(program: &Path, folder: &Path, arguments: &[&str]) -> Result<(), RowError> {
    let output = Command::new(program).current_dir(folder).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into())
}

/// For each direction: how long publishing took, and catching up.
async fn round(program: &Path, folder: &Path, messages: u64) -> Result<[[Duration; 2]; 2], RowError> {
    for line in ["ca ca --cluster bench", "node hub --ca ca --out hub", "edge site --ca ca --out site"] {
        run(program, folder, &[&["cert"], &line.split(' ').collect::<Vec<_>>()[..]].concat())?;
    }
    // Free now; nobody else asks for it in between but by chance.
    let door = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let (theirs, ours) = (folder.join("hub"), folder.join("site"));
    let (theirs, ours) = (theirs.to_str().ok_or("a path")?, ours.to_str().ok_or("a path")?);
    let flags = ["--edge-listen", &door, "--edge-certificates", theirs];
    let hub = Node::start(program, folder, "hub", &flags).await?;
    let edge = Node::start(program, folder, "edge", &[]).await?;
    let url = format!("quic://{door}");
    let link = |arguments: &[&str]| {
        run(program, folder, &[&["link"], arguments, &["--admin", &edge.admin]].concat())
    };

    edge.stream("UP", "up").await?;
    hub.stream("UP", "up").await?;
    let local = publish(&edge.context, "up", messages).await?;
    let start = Instant::now();
    link(&["add", "out", "--url", &url, "--certificates", ours, "--export", "stream=UP"])?;
    let exported = until(start, messages, async || Ok(hub.messages("UP").await)).await?;
    link(&["rm", "out"])?;

    hub.stream("DOWN", "down").await?;
    let there = publish(&hub.context, "down", messages).await?;
    let start = Instant::now();
    link(&["add", "in", "--url", &url, "--certificates", ours, "--import", "stream=DOWN"])?;
    let imported = until(start, messages, async || Ok(edge.messages("DOWN").await)).await?;
    Ok([[local, exported], [there, imported]])
}
