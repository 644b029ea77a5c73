//! The 16550 at 0x3f8, IRQ 4: the guest's console.

use super::{Device, DeviceState, failed};
use crate::MachineError;
use crate::console::{Console, ConsoleInput, ConsoleState};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

const VERSION: u16 = 1;
const NAME: &str = "serial0";

/// An interrupt line, raised through an irqfd.
#[derive(Debug)]
pub(crate) struct IrqTrigger(pub(crate) EventFd);

impl Trigger for IrqTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the UART writes: the console's ring.
struct Output(Arc<Console>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<IrqTrigger, NoEvents, Output>;

/// The serial port with the console behind it.
pub(crate) struct SerialPort {
    uart: Mutex<Uart>,
    irq: EventFd,
    console: Arc<Console>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
    console: ConsoleState,
}

impl SerialPort {
    pub(crate) fn new(irq: EventFd, console: Arc<Console>) -> Result<Self, MachineError> {
        let trigger = irq.try_clone().map_err(|error| failed(NAME, error))?;
        let uart = Mutex::new(Serial::new(IrqTrigger(trigger), Output(Arc::clone(&console))));
        Ok(Self { uart, irq, console })
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleInput for SerialPort {
    fn push_input(&self, bytes: &[u8]) -> usize {
        // A full FIFO takes nothing; the caller keeps the rest.
        self.lock().enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

impl Device for SerialPort {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.lock();
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        // `rep insb` arrives as many bytes of one port.
        data.iter_mut().for_each(|byte| *byte = uart.read(register));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.lock();
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for byte in data {
            if let Err(error) = uart.write(register, *byte) {
                tracing::warn!(?error, "serial port write failed");
            }
        }
    }

    fn save(&self) -> Result<DeviceState, MachineError> {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.lock().state();
        let saved = Saved {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
            console: self.console.save(),
        };
        DeviceState::encode(NAME, VERSION, &saved)
    }

    fn restore(&self, state: &DeviceState) -> Result<(), MachineError> {
        let Saved {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
            console,
        } = state.decode(NAME, VERSION)?;
        let registers = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        };
        let trigger = self.irq.try_clone().map_err(|error| failed(NAME, error))?;
        let output = Output(Arc::clone(&self.console));
        let uart = Serial::from_state(&registers, IrqTrigger(trigger), NoEvents, output);
        *self.lock() = uart.map_err(|error| failed(NAME, error))?;
        self.console.restore(console);
        Ok(())
    }
}
