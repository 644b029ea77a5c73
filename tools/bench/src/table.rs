//! What a table is made of: links, contents, guest, contestants.

use crate::{
    arguments::{Arguments, ContentChoice, LinkChoice, Table},
    sample::{Contestant, OurMode, QemuMode},
};
use anyhow::{Result, bail};
use std::time::Duration;
use vmotion_model::ByteSize;
use vmotion_probe_guest::{CommandLine, Content, Extent, Pattern, Rate};

/// Everything that was asked for, with what the table says where nothing was.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) table: Table,
    pub(crate) links: Vec<LinkChoice>,
    pub(crate) contents: Vec<Content>,
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) memory: ByteSize,
    pub(crate) working_set: ByteSize,
    pub(crate) rate: ByteSize,
    pub(crate) pattern: Pattern,
    /// A move that takes longer does not finish.
    pub(crate) limit: Duration,
    pub(crate) runs: usize,
}

/// What a table says of the guest.
struct Defaults {
    link: LinkChoice,
    content: ContentChoice,
    working_set: ByteSize,
    rate: ByteSize,
    pattern: Pattern,
}

impl Table {
    const fn defaults(self) -> Defaults {
        let (link, content) = (LinkChoice::All, ContentChoice::All);
        let (working_set, rate, pattern) = (ByteSize::mib(512), ByteSize::mib(100), Pattern::Sequential);
        let moves = Defaults { link, content, working_set, rate, pattern };
        let random = Defaults { content: ContentChoice::Random, pattern: Pattern::Uniform, ..moves };
        match self {
            Self::Moves => moves,
            // As much as the ledger of the guest leaves of 1 GiB; 240 MiB/s is twice 1 Gbit/s.
            Self::NonConvergent => Defaults {
                link: LinkChoice::Gigabit,
                working_set: ByteSize::mib(960),
                rate: ByteSize::mib(240),
                ..random
            },
            Self::Wan => Defaults { link: LinkChoice::Wan, rate: ByteSize::mib(10), ..random },
            Self::Stall => Defaults { link: LinkChoice::Loopback, ..random },
            Self::Lines => Defaults {
                link: LinkChoice::Gigabit,
                content: ContentChoice::Random,
                working_set: ByteSize::mib(64),
                rate: ByteSize::mib(200),
                ..moves
            },
        }
    }

    fn contestants(self, quick: bool) -> Vec<Contestant> {
        let (ours, theirs): (&[OurMode], &[QemuMode]) = match self {
            Self::Moves if quick => (&[OurMode::DEFAULT], &QemuMode::QUICK),
            Self::Moves => (&[OurMode::DEFAULT], &QemuMode::ALL),
            Self::NonConvergent => (&[OurMode::AUTO], &QemuMode::NON_CONVERGENT),
            Self::Wan => (&[OurMode::DEFAULT], &QemuMode::WAN),
            Self::Stall => (&[OurMode::POST_COPY], &QemuMode::POST_COPY),
            Self::Lines => (&OurMode::DELTAS, &QemuMode::LINES),
        };
        let theirs = theirs.iter().copied().map(Contestant::Qemu);
        ours.iter().copied().map(Contestant::Ours).chain(theirs).collect()
    }
}

impl Plan {
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        let table = arguments.table;
        let defaults = table.defaults();
        let wanted = |contestant: &Contestant| {
            arguments.only.is_empty() || arguments.only.iter().any(|name| contestant.name() == name)
        };
        let contestants: Vec<_> = table.contestants(arguments.quick).into_iter().filter(wanted).collect();
        if contestants.is_empty() {
            bail!("no contestant is called {:?}", arguments.only);
        }
        Ok(Self {
            table,
            links: links(arguments.link.unwrap_or(defaults.link)),
            contents: contents(arguments.content.unwrap_or(defaults.content)),
            contestants,
            memory: arguments.memory.unwrap_or(ByteSize::gib(1)),
            working_set: arguments.working_set.unwrap_or(defaults.working_set),
            rate: arguments.rate.unwrap_or(defaults.rate),
            pattern: defaults.pattern,
            limit: Duration::from_secs(arguments.limit.unwrap_or(60)),
            runs: if arguments.quick { 1 } else { arguments.runs.max(1) },
        })
    }

    /// The guest's command line.
    pub(crate) fn cmdline(&self, content: Content) -> String {
        let line = CommandLine::new()
            .working_set_bytes(self.working_set.bytes())
            .rate(Rate::BytesPerSecond(self.rate.bytes()))
            .content(content)
            .pattern(self.pattern)
            .heartbeat_ms(1);
        match self.table {
            Table::Stall => line.touches(true).to_string(),
            Table::Lines => line.extent(Extent::Line).to_string(),
            Table::Moves | Table::NonConvergent | Table::Wan => line.to_string(),
        }
    }
}

fn links(choice: LinkChoice) -> Vec<LinkChoice> {
    if choice == LinkChoice::All { vec![LinkChoice::Loopback, LinkChoice::Gigabit] } else { vec![choice] }
}

fn contents(choice: ContentChoice) -> Vec<Content> {
    match choice {
        ContentChoice::Text => vec![Content::Text],
        ContentChoice::Random => vec![Content::Random],
        ContentChoice::All => vec![Content::Text, Content::Random],
    }
}
