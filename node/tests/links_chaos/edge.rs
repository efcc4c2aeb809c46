//! A link over QUIC between two clusters of three nodes: any node of the edge may run it, any node of the hub may
//! be dialled. Whoever runs it, leads, or is dialled is killed under load, again and again.
//!
//! Oracle: as for one node; and what either cluster acked is in its stream once.

use serde_json::Value;

use super::cluster::connect_all;
use super::dev_cluster::{beamlog, free_base};
use super::*;

const KILLS: usize = 6;

/// Three nodes, each started again at its addresses.
struct Three {
    prefix: &'static str,
    base: u16,
    nodes: Vec<Process>,
}

impl Three {
    /// Certificates are there: a folder for each node. Edges find node `i` at `base + 3 + i`.
    fn start(folder: &Path, prefix: &'static str, configuration: impl Fn(usize) -> String) -> Self {
        let base = free_base();
        let mut nodes = Vec::new();
        for number in 0..3_u16 {
            let (folder, name) = (folder.to_owned(), format!("{prefix}{}", number + 1));
            let file = folder.join(format!("{name}.toml"));
            std::fs::write(&file, configuration(usize::from(number))).unwrap();
            let address = move |offset: u16| format!("127.0.0.1:{}", base + offset + number);
            let url = format!("nats://{}", address(0));
            nodes.push(Process::new(url, move || {
                let mut command = beamlog();
                command.args(["serve", "--listen", &address(0), "--admin", &address(1000)]);
                command.args(["--server-name", &name, "--cluster-listen", &address(2000)]);
                command.arg("--cluster-certificates").arg(folder.join(&name));
                command.arg("--data-dir").arg(folder.join(format!("{name}.data"))).arg("--config").arg(&file);
                if number > 0 {
                    command.args(["--cluster-join", &format!("127.0.0.1:{}", base + 2000)]);
                }
                if prefix == "hub" {
                    command.args(["--edge-listen", &address(2003)]);
                }
                let log = folder.join(format!("{name}.log"));
                let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
                command
            }));
        }
        Self { prefix, base, nodes }
    }

    fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.url.clone()).collect()
    }

    fn admin(&self, node: usize) -> String {
        format!("127.0.0.1:{}", usize::from(self.base) + 1000 + node)
    }

    /// What each node that answers says of the link.
    fn links(&self) -> Vec<Option<Value>> {
        let status = |node| {
            let output = beamlog()
                .args(["link", "status", "hub", "-o", "json", "--admin", &self.admin(node)])
                .output()
                .unwrap();
            output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
        };
        (0..3).map(status).collect()
    }

    /// The only node that runs the link, when every other one stands by; and where it is connected.
    fn runner(&self) -> Option<(usize, String)> {
        let links = self.links();
        let is = |link: &Option<Value>, state: &str| link.as_ref().is_some_and(|link| link["state"] == state);
        let standby = links.iter().filter(|link| is(link, "standby")).count();
        let runs = links.iter().position(|link| is(link, "connected"))?;
        (standby == 2).then(|| (runs, links[runs].as_ref().unwrap()["server"].as_str().unwrap().to_owned()))
    }

    /// The node that leads.
    async fn leader(&self, context: &Context) -> Option<usize> {
        let stream = context.get_stream("UP").await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        leader.strip_prefix(self.prefix)?.parse::<usize>().ok()?.checked_sub(1)
    }

    /// By the node that leads: whoever does not vote yet is no replacement for one that is killed.
    fn all_vote(&self) -> bool {
        let voters = |node| {
            let output = beamlog()
                .args(["cluster", "status", "-o", "json", "--admin", &self.admin(node)])
                .output()
                .unwrap();
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let is_voter = |member: &&Value| member["role"] == "voter";
            Some(status["members"].as_array()?.iter().filter(is_voter).count())
        };
        (0..3).all(|node| voters(node) == Some(3))
    }

    /// Every node votes and has everything: any of them may go.
    async fn is_whole(&self, context: &Context) -> Option<()> {
        if !self.all_vote() {
            return None;
        }
        let stream = context.get_stream("UP").await.ok()?;
        let cluster = stream.cached_info().cluster.as_ref()?;
        let current = cluster.replicas.iter().filter(|one| one.current && !one.offline).count();
        (cluster.leader.is_some() && current == 2).then_some(())
    }
}

fn cert(folder: &Path, line: &str) {
    let output = beamlog().current_dir(folder).arg("cert").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn make_replicated(context: &Context, name: &str, subjects: &str) {
    let subjects = vec![subjects.into()];
    let config = Config { name: name.into(), subjects, num_replicas: 3, ..Config::default() };
    patiently("a stream is made", async || context.create_stream(config.clone()).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_between_two_clusters_outlives_every_node_of_either() {
    let folder = TempDir::new().unwrap();
    for (authority, prefix) in [("plant", "hub"), ("site", "edge")] {
        cert(folder.path(), &format!("ca {authority} --cluster {authority}"));
        for number in 1..=3 {
            cert(folder.path(), &format!("node {prefix}{number} --ca {authority} --out {prefix}{number}"));
        }
    }
    // The edge is one, whichever of its nodes comes.
    cert(folder.path(), "edge site7 --ca plant --out site7");
    let grant = "[[edge]]\nname = \"site7\"\nstreams = [\"DOWN\", \"UP\"]\nsubjects = [\"up.>\"]\n";
    let mut hub = Three::start(folder.path(), "hub", |_| grant.to_owned());
    let doors: Vec<String> =
        (0..3).map(|node| format!("\"quic://127.0.0.1:{}\"", hub.base + 2003 + node)).collect();
    let link = format!(
        "[[link]]\nname = \"hub\"\nurls = [{}]\ncertificates = {:?}\nimport = [ {{ stream = \"DOWN\" }} ]\n\
         export = [ {{ stream = \"UP\" }} ]\n",
        doors.join(", "),
        folder.path().join("site7")
    );
    let mut edge = Three::start(folder.path(), "edge", |_| link.clone());
    let _last_words: Vec<LastWords> = ["hub1", "hub2", "hub3", "edge1", "edge2", "edge3"]
        .map(|name| LastWords(folder.path().join(format!("{name}.log"))))
        .into();
    let (there, here) = (connect_all(hub.urls()).await, connect_all(edge.urls()).await);
    let (far, near) = (jetstream::new(there.clone()), jetstream::new(here.clone()));
    make_replicated(&far, "DOWN", "down.>").await;
    make_replicated(&far, "UP", "up.>").await;
    make_replicated(&near, "UP", "up.>").await;
    patiently("one node runs the link", async || edge.runner()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let acked = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    let mut publishers = Vec::new();
    for at in 0..2 {
        for (urls, prefix, acked) in [(hub.urls(), "down", &acked[0]), (edge.urls(), "up", &acked[1])] {
            let (client, subject) = (connect_all(urls).await, format!("{prefix}.{at}"));
            publishers.push(tokio::spawn(publish(client, subject, Arc::clone(&stop), Arc::clone(acked))));
        }
    }
    let mut killed = Vec::new();
    for round in 0..KILLS {
        let (runner, door) = patiently("one node runs the link", async || edge.runner()).await;
        let carried = (count(&far, "UP").await.unwrap_or(0), count(&near, "DOWN").await.unwrap_or(0));
        patiently("it carries both ways", async || {
            let now = (count(&far, "UP").await?, count(&near, "DOWN").await?);
            (now.0 > carried.0 && now.1 > carried.1).then_some(())
        })
        .await;
        let dialled = doors.iter().position(|url| url.contains(&door)).unwrap();
        patiently("the hub is whole", async || hub.is_whole(&far).await).await;
        patiently("the edge is whole", async || edge.is_whole(&near).await).await;
        let (three, node, why) = match round % 3 {
            0 => (&mut edge, runner, "ran it"),
            1 => {
                let leader = patiently("the hub has a leader", async || hub.leader(&far).await).await;
                (&mut hub, leader, "led")
            }
            _ => (&mut hub, dialled, "was dialled"),
        };
        three.nodes[node].kill();
        killed.push(format!("{}{} {why}", three.prefix, node + 1));
        // The others go on without it before it comes back.
        let (prefix, context) = (three.prefix, if three.prefix == "hub" { &far } else { &near });
        patiently("two of three lead on", async || {
            let leader = three.leader(context).await?;
            (leader != node).then_some(())
        })
        .await;
        three.nodes[node].begin();
        println!("{prefix}{} was killed", node + 1);
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    for (from, source, to, target) in [(&far, "DOWN", &near, "DOWN"), (&near, "UP", &far, "UP")] {
        all_of((from, source), (to, target)).await;
    }
    let source = by_subject(&there, "DOWN").await;
    check_equal(&source, &by_subject(&here, "DOWN").await, "import");
    let exported = by_subject(&here, "UP").await;
    check_equal(&exported, &by_subject(&there, "UP").await, "export");
    let messages = |all: &BTreeMap<String, Vec<String>>| all.values().map(Vec::len).sum::<usize>() as u64;
    let acked = acked.map(|acked| acked.load(Ordering::Relaxed));
    println!(
        "killed {killed:?}: {} imported, {} exported, 0 lost, 0 doubled; acked {acked:?}",
        messages(&source),
        messages(&exported)
    );
    assert_eq!([messages(&source), messages(&exported)], acked, "what was acked is there, once");
}
