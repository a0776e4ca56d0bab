// Drawn examples for those who have no image at hand: simple, and nobody's property. A domain without drawings of its own gets the general ones.
const SIDE = 300

/** The same numbers at every visit. */
function numbers(seed) {
  return () => (seed = (seed * 16807) % 2147483647) / 2147483647
}

function canvas(paint, background) {
  const made = document.createElement('canvas')
  made.width = made.height = SIDE
  const context = made.getContext('2d')
  context.fillStyle = background
  context.fillRect(0, 0, SIDE, SIDE)
  paint(context)
  return made
}

function line(context, points, color, width) {
  context.strokeStyle = color
  context.lineWidth = width
  context.beginPath()
  points.forEach(([x, y], i) => i ? context.lineTo(x, y) : context.moveTo(x, y))
  context.stroke()
}

function cell(damage, seed) {
  return canvas(context => {
    const random = numbers(seed), glow = context.createRadialGradient(150, 150, 30, 150, 150, 210)
    glow.addColorStop(0, '#b4b4b4')
    glow.addColorStop(1, '#7c7c7c')
    context.fillStyle = glow
    context.fillRect(6, 6, SIDE - 12, SIDE - 12)
    for (let i = 0; i < 900; i++) { context.fillStyle = `rgba(${random() < .5 ? '0,0,0' : '255,255,255'},${.09 * random()})`; context.fillRect(SIDE * random(), SIDE * random(), 14 * random(), 14 * random()) }
    for (let y = 12; y < SIDE; y += 9) line(context, [[6, y], [SIDE - 6, y]], '#0000001c', 1)
    for (const x of [100, 200]) line(context, [[x, 6], [x, SIDE - 6]], '#3c3c3c', 7)
    context.fillStyle = '#0b0b0b'
    for (const [x, y, a, b] of [[0, 0, 40, 40], [SIDE, 0, -40, 40], [0, SIDE, 40, -40], [SIDE, SIDE, -40, -40]]) { context.beginPath(); context.moveTo(x, y); context.lineTo(x + a, y); context.lineTo(x, y + b); context.fill() }
    damage(context, random)
  }, '#0b0b0b')
}

const crack = context => { line(context, [[22, 205], [70, 170], [118, 182], [170, 120], [215, 96], [282, 40]], '#161616', 4); line(context, [[170, 120], [196, 158], [190, 214]], '#161616', 3); context.fillStyle = '#1c1c1cd0'; context.beginPath(); context.moveTo(170, 122); context.lineTo(196, 158); context.lineTo(198, 128); context.fill() }
const dark = context => { context.fillStyle = '#151515e0'; context.fillRect(204, 6, 90, 150); context.fillStyle = '#151515a0'; context.fillRect(204, 156, 90, 40) }

function molecule(rings, tail) {
  return canvas(context => {
    rings.forEach(([x, y]) => { const corners = [...Array(7)].map((_, i) => [x + 42 * Math.sin(i * Math.PI / 3), y + 42 * Math.cos(i * Math.PI / 3)]); line(context, corners, '#111', 4); line(context, corners.slice(1, 3).map(([a, b]) => [x + .78 * (a - x), y + .78 * (b - y)]), '#111', 3); line(context, corners.slice(3, 5).map(([a, b]) => [x + .78 * (a - x), y + .78 * (b - y)]), '#111', 3) })
    line(context, tail, '#111', 4)
    context.fillStyle = '#c01818'
    context.font = 'bold 30px sans-serif'
    const [x, y] = tail.at(-1)
    context.fillText('OH', x - 4, y + 12)
  }, '#fff')
}

function shape(background, color, points) {
  return canvas(context => { context.fillStyle = color; context.beginPath(); if (points) points.forEach(([x, y]) => context.lineTo(x, y)); else context.arc(150, 150, 92, 0, 7); context.fill() }, background)
}

function noise() {
  return canvas(context => { const random = numbers(11); for (let x = 0; x < SIDE; x += 6) for (let y = 0; y < SIDE; y += 6) { context.fillStyle = `rgb(${255 * random()},${255 * random()},${255 * random()})`; context.fillRect(x, y, 6, 6) } }, '#888')
}

const GENERAL = [
  ['a red square', () => shape('#e9e6df', '#c8352f', [[70, 70], [230, 70], [230, 230], [70, 230]])],
  ['a blue circle', () => shape('#e4e8ec', '#2b5fc2', null)],
  ['colored noise', noise],
]
const OWN = {
  industrial: [
    ['a solar cell', () => cell(() => { }, 3)], ['a solar cell with a crack', () => cell(crack, 7)],
    ['a solar cell with a dark part', () => cell(dark, 9)], ['colored noise', noise],
  ],
  scientific: [
    ['a molecule with one ring', () => molecule([[110, 160]], [[146, 139], [190, 115], [232, 139]])],
    ['a molecule with two rings', () => molecule([[82, 170], [155, 170]], [[191, 149], [228, 128], [240, 96]])], ['colored noise', noise],
  ],
}

/** Pairs of a description and a function that draws it on a canvas. */
export const examples = domain => OWN[domain] || GENERAL
