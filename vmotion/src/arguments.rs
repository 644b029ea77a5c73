//! The command line, as clap reads it. Every help text is meant to teach.

mod audit;
mod plans;
mod simulate;
mod top;

pub(crate) use audit::AuditArguments;
pub(crate) use plans::PlansCommand;
pub(crate) use simulate::SimulateArguments;
pub(crate) use top::{Section, TopArguments};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};
use vmotion_api::PlanId;
use vmotion_controller::store::etcd::EtcdOptions;
use vmotion_model::{
    Bandwidth, ByteSize, DatacenterName, DiskSpec, HostName, MachineName, MoreHosts, MoveId, NameError, PieceName,
    PieceNameError, Strategy,
};

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 internal error; 2 invalid request; 3 not found; 4 conflict; 5 refused (the request is right, the \
world does not allow it); 6 forbidden; 7 a service does not answer; 8 the move did not happen, the machine runs on where it was.

Start here: `vmotion demo` shows a whole move on this machine, with nothing to configure.";

/// Live migration for KVM virtual machines.
#[derive(Debug, Parser)]
#[command(name = "vmotion", version, after_help = EXIT_CODES, infer_subcommands = false)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Controller URL, as `vmotion controller` prints it; of several controllers all, with commas: the one that leads answers. Default:
    /// the one this user last started here
    #[arg(long, global = true, env = "VMOTION_CONTROLLER", value_name = "URL[,URL]")]
    pub(crate) controller: Option<String>,
    /// Directory with ca.pem, cert.pem and key.pem of who gives the order
    #[arg(long, global = true, env = "VMOTION_IDENTITY", value_name = "DIR")]
    pub(crate) identity: Option<PathBuf>,
    /// Print JSON to standard output, with the fields that the API documents
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show a whole move: two datacenters on this machine, a guest that checks itself, one live move, a report
    Demo(DemoArguments),
    /// Run a controller: it keeps who owns which machine, and drives moves
    #[command(
        after_help = "With --etcd several controllers share one store: one leads, the others stand by and take over within seconds when it dies. \
                      Start each like this:\n  vmotion controller --name c1 --data ./c1 --listen 10.0.0.1:7070 --etcd http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379 --identity ./c1-identity\n\
                      and name all of them to agents and commands: --controller https://10.0.0.1:7070,https://10.0.0.2:7070"
    )]
    Controller(ControllerArguments),
    /// Look after what controllers keep
    #[command(subcommand)]
    Store(StoreCommand),
    /// Run an agent: it makes this host one that machines can run on
    Agent(AgentArguments),
    /// Create a machine and start it
    #[command(
        after_help = "Example: vmotion create vm1 --kernel vmlinux --memory 1G --cpus 2 --on dc1 --disk /srv/vm1.img"
    )]
    Create(CreateArguments),
    /// List machines
    Ls,
    /// Show one machine; of one that spans several hosts also who waits for whose pages
    Show {
        /// Which
        machine: MachineName,
        /// Say which piece of it should be on another host, and why
        #[arg(long)]
        advise: bool,
        /// Do what the advice says
        #[arg(long, requires = "advise")]
        auto: bool,
    },
    /// Follow a machine's console, across moves; what is typed goes to the machine. End with Ctrl-] or Ctrl-C
    Console(ConsoleArguments),
    /// Move a running machine to another host or datacenter, without its noticing
    #[command(
        after_help = "Example: vmotion move vm1 --to dc2 --max-downtime 50\n\nUntil switch-over a move can be cancelled (vmotion cancel, or Ctrl-C here) and the machine runs on where it is."
    )]
    Move(MoveArguments),
    /// Spread a machine that was created with --span over hosts, in equal shares: new ones join, and those left without a piece leave
    Span {
        /// Which
        machine: MachineName,
        /// Over which hosts, such as h1,h2
        #[arg(long, value_name = "HOST,HOST", value_delimiter = ',', required = true)]
        over: Vec<HostName>,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Begin it, and do not wait for its end
        #[arg(long)]
        detach: bool,
    },
    /// List moves, show or draw one, change its limits
    #[command(args_conflicts_with_subcommands = true)]
    Moves {
        /// Which; all when left out
        id: Option<MoveId>,
        #[command(subcommand)]
        command: Option<MovesCommand>,
    },
    /// Cancel a move; the machine runs on where it is
    Cancel {
        /// Which
        id: MoveId,
    },
    /// Stop a machine; its definition and console stay
    Stop {
        /// Which
        machine: MachineName,
    },
    /// Remove a stopped machine
    Rm {
        /// Which
        machine: MachineName,
    },
    /// Save a running machine to a directory on its host; it goes on running
    Snapshot {
        /// Which
        machine: MachineName,
        /// New directory on the machine's host
        directory: PathBuf,
    },
    /// Declare what is to be: links, hosts, rules, policy and machines; what differs is made so
    #[command(
        after_help = "Example: vmotion apply -f site.toml --dry-run\n\nMachines that are declared and not there are created. Nothing that runs is changed or ended, but for --prune."
    )]
    Apply {
        /// The model: TOML, as `vmotion site` prints it
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// Stop and remove machines that were declared and are not any more
        #[arg(long)]
        prune: bool,
        /// Do not wait until declared machines are there
        #[arg(long)]
        detach: bool,
    },
    /// Print what is declared
    Site,
    /// Move everything where it belongs: rules kept, load spread, pieces near what they share with
    #[command(after_help = "Each step comes with its reason, its gain, its cost, and the places that were not taken.")]
    Rebalance {
        /// Only say what would be moved, and why
        #[arg(long)]
        dry_run: bool,
        /// Begin it, and do not wait for its end
        #[arg(long)]
        detach: bool,
    },
    /// List plans, show one, begin no more of its steps, or undo what it did
    #[command(args_conflicts_with_subcommands = true)]
    Plans {
        /// Which; all when left out
        id: Option<PlanId>,
        #[command(subcommand)]
        command: Option<PlansCommand>,
    },
    /// Show how the policy acts, or set it
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Why is a machine where it is? In numbers, rule by rule, with the places that would be next best
    Why {
        /// Which; or a piece of one that spans several hosts, such as big1/vcpu2
        #[arg(value_name = "MACHINE[/PIECE]")]
        what: What,
    },
    /// Why is a machine not on that host? Rule by rule, with what it would gain and cost
    WhyNot {
        /// Which; or a piece of one that spans several hosts, such as big1/vcpu2
        #[arg(value_name = "MACHINE[/PIECE]")]
        what: What,
        /// Where
        host: HostName,
    },
    /// What would the policy do with other hosts, or other demand? Nothing is done
    #[command(
        after_help = "Example: vmotion what-if --remove h3 --add 2xh9 --grow 'web-*' 20%\n\nExit code 5 when something would have no place."
    )]
    WhatIf(WhatIfArguments),
    /// What would have come of it? Generated or recorded days under the policy, the usual rule of thumb, and none; nothing is moved
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(SimulateArguments),
    /// List hosts, take one out of service for new machines, or empty it
    #[command(subcommand)]
    Host(HostCommand),
    /// Look whether this host can run machines and take them in: KVM, memory, clock, network, certificate
    #[command(
        after_help = "Looks, and changes nothing. Exit code 5 when machines could not run here, or not be moved."
    )]
    Doctor(DoctorArguments),
    /// Show what hosts, machines, pieces, moves and plans do, as it changes; ? shows the keys
    Top(TopArguments),
    /// Show who did what: every order is written down before it is obeyed
    #[command(
        after_help = "Each entry is sealed with the hash of the one before. Keep what --verify prints as last on another machine:\n  \
                      vmotion audit --verify\n  vmotion audit --verify --known 812:5f0c…\n\
                      Only admins read the log. `asked` without `answered` is an order during which the controller ended."
    )]
    Audit(AuditArguments),
    /// Make certificates: a private authority, and identities it issues
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Write manual pages, one for each command
    Man {
        /// Where to, such as /usr/local/share/man/man1
        directory: PathBuf,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// A machine's process; started by agents
    #[command(hide = true)]
    Machine {
        /// The machine's directory
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Where the agent keeps everything, or is to
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where machines arrive
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub(crate) address: IpAddr,
    /// UDP ports for arriving machines
    #[arg(long, default_value = MOVE_PORTS, value_name = "FIRST-LAST", value_parser = ports)]
    pub(crate) move_ports: (u16, u16),
}

#[derive(Debug, Args)]
pub(crate) struct WhatIfArguments {
    /// Hosts that go, such as h3,h4
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    pub(crate) remove: Vec<HostName>,
    /// Hosts that come: as many as that, like one that is there
    #[arg(long, value_delimiter = ',', value_name = "COUNTxHOST")]
    pub(crate) add: Vec<MoreHosts>,
    /// Machines that ask for so much more of processors, such as web-* 20%; or for less, such as web-* -20%
    #[arg(long, num_args = 2, value_names = ["MACHINES", "PERCENT"], allow_negative_numbers = true, allow_hyphen_values = true)]
    pub(crate) grow: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// List hosts
    Ls,
    /// Place no new machine on a host; those on it stay
    Cordon {
        /// Which
        host: HostName,
    },
    /// Move everything away from a host; nothing comes to it until it is uncordoned
    #[command(
        after_help = "Example: vmotion host drain h3 --by 18:00 --max-downtime 300ms\n\nWhat cannot be moved, or not in time, is said at once, with what stands in its way; the rest is moved. Exit code 5 then."
    )]
    Drain {
        /// Which
        host: HostName,
        /// When it is to be empty: a time such as 18:00 (here), 2026-11-23T18:00:00Z, or in 2h
        #[arg(long, value_name = "TIME", value_parser = moment)]
        by: Option<u64>,
        /// Longest pause of each machine, such as 50ms; what the policy is set to when left out
        #[arg(long, value_name = "TIME", value_parser = short_milliseconds)]
        max_downtime: Option<u32>,
        /// Only say what would be moved, and until when
        #[arg(long)]
        dry_run: bool,
        /// Begin it, and do not wait for its end
        #[arg(long)]
        detach: bool,
    },
    /// Let new machines onto a host again; ends its drain
    Uncordon {
        /// Which
        host: HostName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// How it acts, what it does, and which machines it leaves alone
    Show,
    /// Change how it acts; what is not named stays
    Set(PolicySetArguments),
}

/// May the policy act by itself?
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Mode {
    /// It looks, and answers when it is asked
    Manual,
    /// It acts within its budgets
    Auto,
}

#[derive(Debug, Args)]
pub(crate) struct PolicySetArguments {
    /// By itself, or only when asked
    #[arg(value_enum)]
    pub(crate) mode: Option<Mode>,
    /// Moves for balance in any hour at most, such as 4/h
    #[arg(long, value_name = "MOVES/h", value_parser = per_hour)]
    pub(crate) max_moves: Option<u32>,
    /// Part of a host's processors up to which everybody on it is content, such as 80%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) content: Option<u8>,
    /// Longest pause that a move for balance may cost, such as 50ms
    #[arg(long, value_name = "TIME", value_parser = short_milliseconds)]
    pub(crate) max_downtime: Option<u32>,
    /// How long demand must have been seen before anything is concluded from it, such as 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) hold: Option<u32>,
    /// How long a machine stays after a move for balance, such as 1h; twice as long after each further one
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) cooldown: Option<u32>,
    /// How long a machine stays where an operator put it, such as 24h
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) respect: Option<u32>,
}

/// `4/h` or `4`.
fn per_hour(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/h").unwrap_or(text);
    number.trim().parse().map_err(|_| "use a number of moves an hour, such as 4/h".to_owned())
}

fn seconds(text: &str) -> Result<u32, String> {
    let duration = humantime::parse_duration(text).map_err(|error| format!("{error}: use a time such as 5m or 24h"))?;
    u32::try_from(duration.as_secs()).map_err(|_| "more than 136 years: use a time such as 24h".to_owned())
}

/// A time to come, in ms since the epoch: `18:00` here, a date with a time, or `in 2h`.
fn moment(text: &str) -> Result<u64, String> {
    moment_after(text, &jiff::Zoned::now())
}

fn moment_after(text: &str, now: &jiff::Zoned) -> Result<u64, String> {
    let text = text.trim();
    let refused = || format!("{text:?} is no time: use 18:00, 2026-11-23T18:00:00Z, or in 2h");
    let at = if let Some(length) = text.strip_prefix("in ") {
        let length = humantime::parse_duration(length).map_err(|_| refused())?;
        now.timestamp().checked_add(length).map_err(|_| refused())?
    } else if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        timestamp
    } else if let Ok(time) = text.parse::<jiff::civil::Time>() {
        let today = now.date().to_datetime(time).to_zoned(now.time_zone().clone()).map_err(|_| refused())?;
        // One that has passed today is tomorrow's.
        let next = if today > *now { today } else { today.tomorrow().map_err(|_| refused())? };
        next.timestamp()
    } else if let Ok(local) = text.parse::<jiff::civil::DateTime>() {
        local.to_zoned(now.time_zone().clone()).map_err(|_| refused())?.timestamp()
    } else {
        return Err(refused());
    };
    if at <= now.timestamp() {
        return Err(format!("{text} has passed: name a time that is to come"));
    }
    u64::try_from(at.as_millisecond()).map_err(|_| refused())
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make an authority in a directory: ca.pem and ca-key.pem. Keep the key off the hosts
    Init {
        /// Where
        directory: PathBuf,
    },
    /// Issue an identity: ca.pem, cert.pem and key.pem, to be copied to where it is used
    Issue {
        /// For what
        role: Holder,
        /// For whom
        name: HostName,
        /// The authority's directory
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// New directory for the identity
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Holder {
    /// An agent's host
    Host,
    /// A controller
    Controller,
    /// A person or script that only looks: everything but consoles and the audit log
    Viewer,
    /// A person or script that gives orders: machines, moves, drains, consoles
    Operator,
    /// A person or script that also declares the site, sets the policy and reads the audit log
    Admin,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// The guest's memory
    #[arg(long, default_value = "512M")]
    pub(crate) memory: ByteSize,
    /// Memory the guest writes over and over
    #[arg(long, default_value = "256M")]
    pub(crate) working_set: ByteSize,
    /// Bytes the guest writes per second
    #[arg(long, default_value = "50M")]
    pub(crate) rate: ByteSize,
    /// Keep the demo's files (and print where they are)
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ControllerArguments {
    /// Everything it keeps; made when missing
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where its API listens
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// URL by which agents and operators reach it, when that is not the listening address
    #[arg(long, value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// Its name among controllers [default: the one in its certificate]
    #[arg(long)]
    pub(crate) name: Option<HostName>,
    /// Keep everything in this etcd cluster, which other controllers use as well, instead of a file in --data: the URLs of its members
    #[arg(long, value_name = "URL,URL", value_delimiter = ',')]
    pub(crate) etcd: Vec<String>,
    #[command(flatten)]
    pub(crate) access: EtcdAccess,
}

/// How to use an etcd cluster.
#[derive(Debug, Args)]
pub(crate) struct EtcdAccess {
    /// Begin all keys in etcd with this, so that the cluster can have other users
    #[arg(long, default_value = vmotion_controller::store::etcd::DEFAULT_PREFIX, value_name = "PREFIX")]
    pub(crate) etcd_prefix: String,
    /// CA of etcd's certificates, as a PEM file; needed for https
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// Our certificate for etcd, as a PEM file, where it wants one
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// The key of that certificate, as a PEM file
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,
}

impl EtcdAccess {
    /// The cluster that has these members.
    pub(crate) fn of(self, endpoints: Vec<String>) -> EtcdOptions {
        let Self { etcd_prefix: prefix, etcd_ca: ca, etcd_cert: certificate, etcd_key: key } = self;
        EtcdOptions { endpoints, prefix, ca, certificate, key }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Copy what one controller keeps in a file to an etcd cluster, where several can go on with it. Stop the controller first; the
    /// file stays as it is
    #[command(
        after_help = "Example: vmotion store copy --from ./c --to http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379"
    )]
    Copy {
        /// What the controller was given with --data
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Members of the cluster, in which there is nothing under the prefix yet
        #[arg(long, value_name = "URL,URL", value_delimiter = ',', required = true)]
        to: Vec<String>,
        #[command(flatten)]
        access: EtcdAccess,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AgentArguments {
    /// The host's name; its certificate says the same
    #[arg(long)]
    pub(crate) name: HostName,
    /// The datacenter it stands in
    #[arg(long, value_name = "DATACENTER")]
    pub(crate) dc: DatacenterName,
    /// Everything it keeps; made when missing
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where its API listens; port 0 takes any
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Address by which others reach this host, when that is not the listening address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) advertise: Option<IpAddr>,
    /// UDP ports for arriving machines
    #[arg(long, default_value = MOVE_PORTS, value_name = "FIRST-LAST", value_parser = ports)]
    pub(crate) move_ports: (u16, u16),
    /// Silence after which the other end of a move counts as lost, in ms
    #[arg(long, default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(500..=600_000))]
    pub(crate) peer_timeout: u64,
}

const MOVE_PORTS: &str = "47000-47999";

fn ports(text: &str) -> Result<(u16, u16), String> {
    let parse = |text: &str| text.parse::<u16>().ok();
    match text.split_once('-').map(|(first, last)| (parse(first), parse(last))) {
        Some((Some(first), Some(last))) if 0 < first && first <= last => Ok((first, last)),
        _ => Err("use FIRST-LAST, such as 47000-47999".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// The machine's name
    pub(crate) name: MachineName,
    /// Kernel on the host: PVH ELF or Linux bzImage
    #[arg(long, required_unless_present = "from", value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial ramdisk on the host
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub(crate) cmdline: String,
    /// Memory: 16M to 1T
    #[arg(long, default_value = "512M")]
    pub(crate) memory: ByteSize,
    /// vCPUs: 1 to 64
    #[arg(long, default_value_t = 1)]
    pub(crate) cpus: u8,
    /// Disk file or device, at the same path on every host that may run the machine; `,ro` for read-only. Repeatable
    #[arg(long, value_name = "PATH[,ro]")]
    pub(crate) disk: Vec<DiskSpec>,
    /// Host or datacenter; the policy chooses when left out
    #[arg(long, value_name = "HOST|DATACENTER")]
    pub(crate) on: Option<String>,
    /// Back memory with 2 MiB huge pages, which the host must have reserved
    #[arg(long)]
    pub(crate) huge_pages: bool,
    /// How moves learn what the guest writes
    #[arg(long, value_enum, default_value_t = Dirty::Auto)]
    pub(crate) dirty: Dirty,
    /// Who delivers interrupts [default: kernel; user with --span]
    #[arg(long, value_enum)]
    pub(crate) interrupts: Option<Interrupts>,
    /// Spread the machine over these hosts, such as h1,h2: vCPUs and memory in equal parts, devices on the first
    #[arg(long, value_name = "HOST,HOST", value_delimiter = ',', conflicts_with_all = ["on", "from", "huge_pages"])]
    pub(crate) span: Vec<HostName>,
    /// With --span: compare the bytes of every copy of a page with those of its version, and end the machine rather than believe a wrong one
    #[arg(long, requires = "span")]
    pub(crate) audit: bool,
    /// Start from a snapshot directory on the host named by --on, instead of booting
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "initrd"], requires = "on")]
    pub(crate) from: Option<PathBuf>,
    /// Only say where it would go, and why
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A machine, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct What {
    pub(crate) machine: MachineName,
    pub(crate) piece: Option<PieceName>,
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (machine, piece) = match text.split_once('/') {
            Some((machine, piece)) => (machine, Some(piece)),
            None => (text, None),
        };
        let machine = machine.parse().map_err(|error: NameError| error.to_string())?;
        let piece = piece.map(str::parse).transpose().map_err(|error: PieceNameError| error.to_string())?;
        Ok(Self { machine, piece })
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Interrupts {
    /// KVM
    Kernel,
    /// The machine's process
    User,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Dirty {
    /// Chosen by what the host offers
    Auto,
    /// KVM's dirty log
    Log,
    /// KVM's dirty ring
    Ring,
}

#[derive(Debug, Args)]
pub(crate) struct ConsoleArguments {
    /// Which machine
    pub(crate) machine: MachineName,
    /// Print what there is, and end
    #[arg(long)]
    pub(crate) no_follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MovesCommand {
    /// Show a move: its numbers, its rounds, and what was foreseen
    Show {
        /// Which
        id: MoveId,
        /// Draw its timeline into this file
        #[arg(long, value_name = "FILE.svg")]
        plot: Option<PathBuf>,
    },
    /// Change the limits of a move that goes on
    Limit {
        /// Which
        id: MoveId,
        /// Bandwidth at most from now on, such as 2Gbit or 100M (bytes); 0 for what the path gives
        #[arg(long, value_name = "BANDWIDTH")]
        max_bandwidth: Bandwidth,
    },
    /// How far forecasts were off in the moves that are remembered
    Accuracy,
}

/// `50ms`, `2m`, `1h 30m`; a number alone is in ms.
fn milliseconds(text: &str) -> Result<u64, String> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}: use a time such as 50ms or 2m"))?;
    u64::try_from(duration.as_millis()).map_err(|_| "a time such as 50ms or 2m".to_owned())
}

fn short_milliseconds(text: &str) -> Result<u32, String> {
    u32::try_from(milliseconds(text)?).map_err(|_| "more than 49 days is no pause: use a time such as 50ms".to_owned())
}

/// `30%` or `30`.
fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    number.parse().ok().filter(|percent| *percent <= 100).ok_or_else(|| "use a percentage such as 30%".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct MoveArguments {
    /// Which machine; or which piece of one that spans several hosts, such as big1/vcpu2 or big1/mem1
    #[arg(value_name = "MACHINE[/PIECE]")]
    pub(crate) what: What,
    /// Host or datacenter
    #[arg(long, value_name = "HOST|DATACENTER")]
    pub(crate) to: String,
    /// Longest pause the guest may suffer, such as 50ms; a number alone is in ms
    #[arg(long, default_value = "300ms", value_name = "TIME", value_parser = short_milliseconds)]
    pub(crate) max_downtime: u32,
    /// The move is to be over in this time, such as 2m; refused, before the guest is paused, when it cannot be
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    pub(crate) deadline: Option<u64>,
    /// Part of its speed the guest may lose meanwhile, such as 30%: lets the engine slow down what writes, and refuses what would
    /// cost more
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) max_slowdown: Option<u8>,
    /// Bandwidth at most, such as 800Mbit or 100M (bytes); `vmotion moves limit` changes it while the move goes on
    #[arg(long, value_name = "BANDWIDTH")]
    pub(crate) max_bandwidth: Option<Bandwidth>,
    /// Silence of the path after which the move counts as failed, such as 10m; until then it goes on when the path is back
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    pub(crate) give_up_after: Option<u64>,
    /// Memory that the source may take to send pages again by what changed in them, such as 256M; 0 for none [default: 1/16 of the
    /// machine's memory, at most 512M]
    #[arg(long, value_name = "SIZE")]
    pub(crate) delta_memory: Option<ByteSize>,
    /// How memory gets there: precopy (nothing can be lost until the switch-over), postcopy (the guest goes at once, memory follows;
    /// until it has, losing a host or the path loses the guest), hybrid, or auto (precopy, and memory follows where it would not
    /// converge)
    #[arg(long, default_value_t = Strategy::Auto, value_name = "STRATEGY")]
    pub(crate) strategy: Strategy,
    /// Compare a digest of all guest memory at both ends, inside the pause
    #[arg(long)]
    pub(crate) verify: bool,
    /// Say where it would go and why, measure guest and path for a second, and predict every strategy's time, pause, bytes and
    /// slowdown; the guest is not paused
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Start the move and return at once
    #[arg(long)]
    pub(crate) detach: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_come_are_read_in_the_operators_zone() {
        let now: jiff::Zoned = "2026-11-23T12:00:00+01:00[+01:00]".parse().unwrap();
        let base = u64::try_from(now.timestamp().as_millisecond()).unwrap();
        let hours = |text: &str| moment_after(text, &now).map(|at| (at - base) / 3_600_000);
        assert_eq!(hours("18:00"), Ok(6));
        assert_eq!(hours("06:00"), Ok(18));
        assert_eq!(hours("in 2h"), Ok(2));
        assert_eq!(hours("2026-11-23T18:00:00Z"), Ok(7));
        assert_eq!(hours("2026-11-24T12:00"), Ok(24));
        for bad in ["", "soon", "25:00", "2020-01-01T00:00:00Z", "in a while"] {
            assert!(moment_after(bad, &now).is_err(), "{bad}");
        }
    }

    #[test]
    fn budgets_are_read_by_the_hour() {
        assert_eq!((per_hour("4/h"), per_hour("4")), (Ok(4), Ok(4)));
        assert!(per_hour("4/min").is_err());
        assert_eq!(seconds("5m"), Ok(300));
    }
}
