//! `vmotion simulate`, as an operator runs it: without a controller.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use serde_json::Value;
use std::{fs, path::Path, process::Command};

/// Exit code, standard output, standard error.
fn simulate(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmotion")).arg("simulate").args(arguments).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), out, err)
}

fn written(directory: &Path, name: &str, text: &str) -> String {
    let file = directory.join(name);
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn generated_days_are_told_as_json_by_policy() {
    let (code, out, err) = simulate(&["--hosts", "4", "--machines", "40", "--seed", "1", "--json"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!([&told["hosts"], &told["machines"], &told["seed"]], [4, 40, 1]);
    assert_eq!([&told["days"], &told["history_days"]], [3.0, 2.0]);
    let outcomes = told["outcomes"].as_array().unwrap();
    let policies: Vec<&str> = outcomes.iter().map(|outcome| outcome["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, ["none", "naive", "ours"]);
    for outcome in outcomes {
        let sum = |field: &str| outcome[field].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).sum::<u64>();
        assert_eq!(outcome["by_interval"].as_array().unwrap().len(), 288);
        assert_eq!([&outcome["overloaded"], &outcome["moves"]], [sum("by_interval"), sum("moves_by_interval")]);
    }
    let [none, naive, ours] = outcomes.as_slice() else { panic!("{told}") };
    assert_eq!([&none["moves"], &none["of_none"]], [&Value::from(0), &Value::from(1.0)]);
    assert!(ours["moves"].as_u64() < naive["moves"].as_u64(), "{ours} {naive}");
    assert!(ours["overloaded"].as_u64() < none["overloaded"].as_u64(), "{ours} {none}");
}

#[test]
fn a_table_is_replayed_and_drawn() {
    let place = tempfile::tempdir().unwrap();
    let mut rows = "time_s,machine,cpus,vcpus,memory_mib,host\n".to_owned();
    for at in 0..24 {
        for (machine, cpus, host) in [("a", 2.0, "h1"), ("b", 1.5, "h1"), ("c", 0.1, "h2")] {
            rows.push_str(&format!("{},{machine},{cpus},2,64,{host}\n", at * 300));
        }
    }
    let table = written(place.path(), "t.csv", &rows);
    let policy = written(place.path(), "p.toml", "moves_per_hour_max = 1\n");
    let drawing = place.path().join("out.svg");
    let (code, out, err) = simulate(&[
        "--trace",
        &table,
        "--host-cpus",
        "3",
        "--policy",
        &policy,
        "--compare",
        "ours,none",
        "--plot",
        drawing.to_str().unwrap(),
    ]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("2 hosts with 3 processors") && out.contains("nothing is known before"), "{out}");
    assert!(!out.contains("naive"), "{out}");
    assert!(fs::read_to_string(drawing).unwrap().contains("overloaded hosts"));
}

#[test]
fn a_directory_in_planetlabs_format_is_replayed() {
    let place = tempfile::tempdir().unwrap();
    for machine in ["vm-a", "vm-b", "vm-c"] {
        written(place.path(), machine, &"50\n".repeat(300));
    }
    let trace = place.path().to_str().unwrap();
    let (code, out, err) = simulate(&["--trace", trace, "--vcpus", "2", "--compare", "none", "--json"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!([&told["machines"], &told["hosts"]], [3, 2]);
    assert_eq!(told["history_days"], 12.0 / 288.0);
}

#[test]
fn what_is_wrong_is_named_by_file_line_field_and_value() {
    let place = tempfile::tempdir().unwrap();
    let header = "time_s,machine,cpus,vcpus,memory_mib\n";
    let bad = written(place.path(), "bad.csv", &format!("{header}0,a,1,2,64\n300,a,much,2,64\n"));
    let good = written(place.path(), "good.csv", &format!("{header}0,a,1,2,64\n"));
    let policy = written(place.path(), "p.toml", "moves = 1\n");
    let nowhere = place.path().join("no/out.svg");
    for (arguments, words) in [
        (&["--trace", bad.as_str()][..], &["bad.csv: line 3: cpus \"much\" is not valid: use processors"][..]),
        (&["--trace", &good, "--vcpus", "2"], &["good.csv", "--vcpus"]),
        (&["--trace", &good, "--host-cpus", "0"], &["good.csv", "processors 0 of a host"]),
        (&["--trace", &good, "--host-memory", "1M"], &["memory 1 MiB of a host", "64 MiB"]),
        (&["--trace", "/nowhere/t.csv"], &["/nowhere/t.csv"]),
        (&["--trace", &good, "--machines", "4"], &["--machines"]),
        (&["--machines", "250000", "--days", "400"], &["--machines 250000", "--days 400"]),
        (&["--policy", &policy], &["p.toml is no policy", "moves"]),
        (&["--plot", nowhere.to_str().unwrap()], &["Cannot write the drawing", "out.svg"]),
        (&["--hosts", "1"], &["--hosts"]),
    ] {
        let (code, out, err) = simulate(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(words.iter().all(|word| err.contains(word)), "{arguments:?}: {err}");
    }
}
