//! What `cert …` takes.

use std::path::PathBuf;

use clap::Subcommand;

/// A certificate may last as long as people remember that it ends.
const DAYS_MAX: i64 = 36_500;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  beamlog cert ca ./ca --cluster c1                      # once; keep ./ca where no node runs
  beamlog cert node n1 --ca ./ca --out ./n1-certs        # for each node; copy the folder to it
  beamlog cert renew ./n1-certs --ca ./ca                # a running node sees it by itself
  beamlog cert show ./n1-certs
  beamlog cert revoke ./ca --name n7                     # then `cert renew --trust-only` for each node
  beamlog cert token site7 --ca ./ca --out ./site7       # then `cert renew --trust-only` for each hub

A new authority without an interruption:
  beamlog cert ca ./ca --rotate                          # both are believed from now on
  beamlog cert renew ./n1-certs --ca ./ca --trust-only   # first everywhere
  beamlog cert renew ./n1-certs --ca ./ca                # then everywhere
  beamlog cert ca ./ca --retire                          # then the old one goes
  beamlog cert renew ./n1-certs --ca ./ca --trust-only   # everywhere")]
pub(crate) enum CertCommand {
    /// Make the authority of a cluster, or exchange it.
    Ca {
        /// The folder of the authority.
        dir: PathBuf,
        /// The name of the cluster.
        #[arg(long, value_name = "NAME", required_unless_present_any = ["rotate", "retire"])]
        cluster: Option<String>,
        /// How long it is valid.
        #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(i64).range(1..=DAYS_MAX))]
        days: i64,
        /// Make a new authority; the one before is still believed.
        #[arg(long, conflicts_with_all = ["cluster", "retire"])]
        rotate: bool,
        /// Believe only the newest authority from now on.
        #[arg(long, conflicts_with = "cluster")]
        retire: bool,
    },
    /// Issue the certificate of a node.
    Node {
        name: String,
        #[command(flatten)]
        issue: IssueArguments,
        /// It votes and keeps no messages.
        #[arg(long)]
        witness: bool,
    },
    /// Issue the certificate of an edge, which links to a hub.
    Edge {
        name: String,
        #[command(flatten)]
        issue: IssueArguments,
    },
    /// Make a token for an edge that has no certificate. Its hubs keep the digest, and take two of one edge.
    Token {
        name: String,
        /// The folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The folder to write to: the token, and who may be a hub.
        #[arg(long, value_name = "DIR", required_unless_present_any = ["retire", "revoke"])]
        out: Option<PathBuf>,
        /// Make none; take only the newest of the edge from now on.
        #[arg(long, conflicts_with_all = ["out", "revoke"])]
        retire: bool,
        /// Make none; take no token of the edge any more.
        #[arg(long, conflicts_with = "out")]
        revoke: bool,
    },
    /// Issue a new certificate for the one in a folder, with what is believed and revoked now.
    Renew {
        /// The folder of the node.
        dir: PathBuf,
        /// The folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// How long it is valid.
        #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=DAYS_MAX))]
        days: i64,
        /// Keep the certificate; bring only what is believed and revoked.
        #[arg(long)]
        trust_only: bool,
    },
    /// Put a node, or one certificate, on the authority's list of the revoked.
    Revoke {
        /// The folder of the authority.
        dir: PathBuf,
        /// Every certificate of this node.
        #[arg(long, required_unless_present = "serial", conflicts_with = "serial")]
        name: Option<String>,
        /// The certificate with this serial number.
        #[arg(long, value_name = "HEX")]
        serial: Option<String>,
    },
    /// Show certificates: of a folder, or of a file.
    Show { path: PathBuf },
}

#[derive(Debug, clap::Args)]
pub(crate) struct IssueArguments {
    /// The folder of the authority.
    #[arg(long, value_name = "DIR")]
    pub(crate) ca: PathBuf,
    /// The folder to write to.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How long it is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=DAYS_MAX))]
    pub(crate) days: i64,
}
