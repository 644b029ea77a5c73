//! `--rate`, `--a-rate`, `--b-rate` and so on, for every impairment that has a name.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, error::ErrorKind};
use vmotion_wan::{Direction, FIELDS, Field, Impairments, Setting};

/// What both directions do to packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImpairmentFlags {
    pub(crate) a_to_b: Impairments,
    pub(crate) b_to_a: Impairments,
}

/// Whom a flag is for: its prefix, and the direction, `None` for both.
const WHOM: [(&str, Option<Direction>); 3] = [("", None), ("a-", Some(Direction::AToB)), ("b-", Some(Direction::BToA))];

fn flag(prefix: &str, field: &Field) -> Arg {
    // clap wants names that live as long as the program: three dozen, once.
    let name: &'static str = format!("{prefix}{}", field.name).leak();
    let field_name = field.name;
    let parse = move |text: &str| Setting::parse(field_name, text);
    let arg = Arg::new(name).long(name).value_name(field.form).value_parser(parse);
    if prefix.is_empty() {
        arg.help(field.help).help_heading("Impairments (--a-… for what a sends, --b-… for what b sends)")
    } else {
        // Three times the same list would hide the rest of the help.
        arg.hide(true)
    }
}

impl Args for ImpairmentFlags {
    fn augment_args(command: Command) -> Command {
        let flags = WHOM.iter().flat_map(|(prefix, _)| FIELDS.iter().map(move |field| flag(prefix, field)));
        command.args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ImpairmentFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self { a_to_b: Impairments::default(), b_to_a: Impairments::default() };
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    /// Flags for one direction win over those for both, wherever they stand.
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (prefix, direction) in WHOM {
            for field in &FIELDS {
                let setting = matches
                    .try_get_one::<Setting>(&format!("{prefix}{}", field.name))
                    .map_err(|error| clap::Error::raw(ErrorKind::UnknownArgument, error))?;
                let Some(setting) = setting else { continue };
                if direction != Some(Direction::BToA) {
                    setting.apply(&mut self.a_to_b);
                }
                if direction != Some(Direction::AToB) {
                    setting.apply(&mut self.b_to_a);
                }
            }
        }
        Ok(())
    }
}
