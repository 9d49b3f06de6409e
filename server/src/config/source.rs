//! Gathers the settings: flags before the environment before the file before the defaults.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use toml::{Table, Value};

use super::{
    ConfigError,
    options::{Kind, SETTINGS, Setting, UNSUPPORTED},
};

/// The section of Temporal's dynamic configuration keys.
pub const DYNAMIC: &str = "dynamic_config";
const DYNAMIC_FLAG: &str = "dynamic-config-value";
const DYNAMIC_ENV: &str = "PERDURE_DYNAMIC_CONFIG_VALUE";
const FILE_FLAG: &str = "config";
const FILE_ENV: &str = "PERDURE_CONFIG";
/// A name in the environment that differs from a known one in so few letters, and in at most a third, is taken for a
/// mistake.
const MOST_WRONG_LETTERS: usize = 2;

/// What the command line gave.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    file: Option<PathBuf>,
    values: Vec<(&'static str, String)>,
    dynamic: Vec<String>,
}

/// Where a value came from, as a person would look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File,
    Env(String),
    Flag(&'static str),
}

/// All settings that have a value, by key, and the keys of the dynamic configuration.
#[derive(Debug, Default)]
pub struct Gathered {
    pub values: BTreeMap<&'static str, (Value, Origin)>,
    /// `KEY=VALUE`; of two with one key, the later counts.
    pub dynamic: Vec<String>,
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE_FLAG)
            .long(FILE_FLAG)
            .value_name("FILE")
            .help(format!("TOML file with settings; flags and the environment come before it [env: {FILE_ENV}]"));
        let dynamic = Arg::new(DYNAMIC_FLAG)
            .long(DYNAMIC_FLAG)
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help("Set a knob by Temporal's dynamic configuration key; may be repeated");
        command.arg(file).args(SETTINGS.iter().filter_map(flag)).arg(dynamic)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn flag(setting: &Setting) -> Option<Arg> {
    let default = setting.default.filter(|text| !text.is_empty());
    let default = default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let choices = match setting.kind {
        Kind::Choice(choices) => format!(" [possible values: {}]", choices.join(", ")),
        _ => String::new(),
    };
    let arg = Arg::new(setting.key)
        .long(setting.flag?)
        .help(format!("{}{default}{choices} [env: {}]", setting.help, setting.env()))
        .value_name(match setting.kind {
            Kind::Port | Kind::Count => "NUMBER",
            Kind::Switch => "BOOL",
            Kind::List => "NAMES",
            Kind::Text | Kind::Secret | Kind::Ip | Kind::Choice(_) => "VALUE",
        });
    Some(match setting.kind {
        Kind::List => arg.action(ArgAction::Append),
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Text | Kind::Secret | Kind::Ip | Kind::Port | Kind::Count | Kind::Choice(_) => arg,
    })
    .map(|arg| if setting.key == "namespace" { arg.short('n') } else { arg })
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let file = matches.get_one::<String>(FILE_FLAG).map(PathBuf::from);
        let given = |setting: &Setting| {
            setting.flag?;
            let all: Vec<&str> = matches.get_many::<String>(setting.key)?.map(String::as_str).collect();
            Some((setting.key, all.join(",")))
        };
        let dynamic = matches.get_many::<String>(DYNAMIC_FLAG).into_iter().flatten().cloned().collect();
        Ok(Self { file, values: SETTINGS.iter().filter_map(given).collect(), dynamic })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Gathered {
    /// `env` is the environment, by name.
    pub fn gather(flags: &Flags, env: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut this = Self::default();
        for setting in SETTINGS {
            if let Some(text) = setting.default {
                this.set_text(setting, text, Origin::Default)?;
            }
        }
        let file = flags.file.clone().or_else(|| present(env, FILE_ENV).map(PathBuf::from));
        if let Some(path) = file {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| ConfigError::File { file: path.display().to_string(), reason: error.to_string() })?;
            this.read_file(&text).map_err(|error| error.in_file(&path))?;
        }
        this.read_env(env)?;
        for (key, text) in &flags.values {
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == *key) {
                this.set_text(setting, text, Origin::Flag(setting.flag.unwrap_or_default()))?;
            }
        }
        this.dynamic.extend(flags.dynamic.iter().cloned());
        Ok(this)
    }

    fn set_text(&mut self, setting: &'static Setting, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let Some(value) = setting.kind.parse(text.trim()) else {
            let shown = if setting.kind == Kind::Secret { "what was given".to_owned() } else { format!("{text:?}") };
            return Err(ConfigError::BadValue {
                name: origin.name(setting.key),
                expected: setting.kind.expected(),
                found: shown,
            });
        };
        self.values.insert(setting.key, (value, origin));
        Ok(())
    }

    fn read_file(&mut self, text: &str) -> Result<(), ConfigError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax(error.to_string()))?;
        self.read_table("", table)
    }

    fn read_table(&mut self, section: &str, table: Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = if section.is_empty() { name } else { format!("{section}.{name}") };
            let is_section = SETTINGS
                .iter()
                .any(|setting| setting.section() == key || setting.section().starts_with(&format!("{key}.")));
            match value {
                Value::Table(inner) if key == DYNAMIC => self.read_dynamic("", inner)?,
                Value::Table(inner) if is_section => self.read_table(&key, inner)?,
                value => self.set_from_file(&key, value)?,
            }
        }
        Ok(())
    }

    fn set_from_file(&mut self, key: &str, value: Value) -> Result<(), ConfigError> {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let known = SETTINGS.iter().map(|setting| setting.key).chain([DYNAMIC]);
            return Err(ConfigError::Unknown { name: key.to_owned(), nearest: nearest(key, known).0.to_owned() });
        };
        if !setting.kind.takes(&value) {
            let found = if setting.kind == Kind::Secret { "what was given".to_owned() } else { value.to_string() };
            return Err(ConfigError::BadValue { name: key.to_owned(), expected: setting.kind.expected(), found });
        }
        self.values.insert(setting.key, (value, Origin::File));
        Ok(())
    }

    /// Keys may be quoted, or written as the nested tables that their dots make them.
    fn read_dynamic(&mut self, prefix: &str, table: Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                Value::Table(inner) => self.read_dynamic(&key, inner)?,
                Value::String(text) => self.dynamic.push(format!("{key}={text}")),
                Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => self.dynamic.push(format!("{key}={value}")),
                Value::Datetime(_) | Value::Array(_) => {
                    let expected = "a number, a text, true or false".to_owned();
                    return Err(ConfigError::BadValue { name: key, expected, found: value.to_string() });
                }
            }
        }
        Ok(())
    }

    fn read_env(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        for (name, instead) in UNSUPPORTED {
            if present(env, name).is_some() {
                return Err(ConfigError::Unsupported { name: (*name).to_owned(), instead: (*instead).to_owned() });
            }
        }
        for setting in SETTINGS {
            let own = setting.env();
            let names = std::iter::once(own.as_str()).chain(setting.aliases.iter().copied());
            if let Some((name, text)) = names.filter_map(|name| Some((name, present(env, name)?))).next() {
                self.set_text(setting, text, Origin::Env(name.to_owned()))?;
            }
        }
        if let Some(pairs) = present(env, DYNAMIC_ENV) {
            self.dynamic.extend(pairs.split(',').map(|pair| pair.trim().to_owned()));
        }
        refuse_mistakes(env)
    }
}

/// Names that begin like ours and are nearly one of them.
fn refuse_mistakes(env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    let known: Vec<String> =
        SETTINGS.iter().map(Setting::env).chain([DYNAMIC_ENV.to_owned(), FILE_ENV.to_owned()]).collect();
    for name in env.keys().filter(|name| name.starts_with("PERDURE_") && !known.contains(name)) {
        let (nearest, distance) = nearest(name, known.iter().map(String::as_str));
        let letters = nearest.len().saturating_sub("PERDURE_".len());
        if distance <= MOST_WRONG_LETTERS && 3 * distance <= letters {
            return Err(ConfigError::Unknown { name: name.clone(), nearest: nearest.to_owned() });
        }
    }
    Ok(())
}

/// What is set; container users set what they do not use to nothing.
fn present<'a>(env: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    env.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> (&'a str, usize) {
    let by_distance = known.map(|known| (known, perdure_types::edit_distance(known, name)));
    by_distance.min_by_key(|(_, distance)| *distance).unwrap_or(("", usize::MAX))
}

impl Origin {
    /// How the setting was named there.
    fn name(&self, key: &str) -> String {
        match self {
            Self::Default | Self::File => key.to_owned(),
            Self::Env(name) => name.clone(),
            Self::Flag(flag) => format!("--{flag}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Env(name) => f.write_str(name),
            Self::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}
