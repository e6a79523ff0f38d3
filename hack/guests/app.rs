//! A guest in Rust: says what it was given, and does what its first argument asks.

use std::io::{Read, Write};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str).unwrap_or("hello") {
        "hello" => println!("hello from rust {}", std::env::var("WHO").unwrap_or("nobody".into())),
        "exit" => std::process::exit(words[1].parse().unwrap()),
        "copy" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).unwrap();
            std::io::stdout().write_all(text.to_uppercase().as_bytes()).unwrap();
        }
        "write" => std::fs::write(&words[1], &words[2]).unwrap(),
        "sum" => {
            // Enough work for many growths of its memory.
            let all: Vec<u64> = (0..4_000_000).collect();
            println!("{}", all.iter().sum::<u64>());
        }
        other => panic!("what is {}?", other),
    }
}
