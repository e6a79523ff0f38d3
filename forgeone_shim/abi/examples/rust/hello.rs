// rustc --target wasm32-wasip1 -O hello.rs

mod introspect {
    #[link(wasm_import_module = "forgeone:introspect@1")]
    extern "C" {
        pub fn identity(what: u32, buffer: *mut u8, size: u32) -> i32;
        pub fn state() -> i32;
    }
}

mod log {
    #[link(wasm_import_module = "forgeone:log@1")]
    extern "C" {
        pub fn write(level: u32, context: *const u8, context_size: u32, message: *const u8, message_size: u32) -> i32;
    }
}

const ID: u32 = 0;
const INFO: u32 = 2;
const STATES: [&str; 6] = ["created", "booted", "running", "paused", "stopping", "terminated"];

fn main() {
    let mut id = [0u8; 64];
    // Both addresses are of this module's memory, as large as is said.
    let (length, state) = unsafe { (introspect::identity(ID, id.as_mut_ptr(), 64), introspect::state()) };
    assert_eq!(length, 64);
    let text = format!("container {} is {}", String::from_utf8_lossy(&id[..12]), STATES[state as usize]);
    let context = "example";
    let written =
        unsafe { log::write(INFO, context.as_ptr(), context.len() as u32, text.as_ptr(), text.len() as u32) };
    assert_eq!(written, 0);
}
