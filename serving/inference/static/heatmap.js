// An image with a heatmap over it. The grid covers the part of the image that the model saw, which may be more than the image.
const COLORS = [[0, [255, 190, 60, 0]], [0.25, [255, 178, 50, 90]], [0.6, [246, 98, 40, 165]], [1, [214, 22, 60, 205]]]  // red, green, blue, opacity

function color(heat) {
  const above = COLORS.findIndex(([at]) => at >= heat), [high, to] = COLORS[Math.max(above, 0)], [low, from] = COLORS[Math.max(above - 1, 0)]
  const share = high > low ? (heat - low) / (high - low) : 0
  return from.map((value, i) => value + share * (to[i] - value))
}

/** Only what speaks for the text is drawn; the numbers in between are interpolated by the browser. */
function painted(grid) {
  const canvas = document.createElement('canvas'), rows = grid.length, columns = grid[0].length
  canvas.width = columns
  canvas.height = rows
  const context = canvas.getContext('2d'), pixels = context.createImageData(columns, rows)
  grid.flat().forEach((heat, i) => pixels.data.set(color(Math.max(0, heat)), 4 * i))
  context.putImageData(pixels, 0, 0)
  return canvas
}

export function looked(url, heatmap) {
  const frame = document.createElement('div'), image = document.createElement('img'), canvas = painted(heatmap.grid)
  frame.className = 'looked'
  image.src = url
  image.alt = `where the model looked for “${heatmap.text}”`
  const [left, top, right, bottom] = heatmap.box.map(share => 100 * share)
  Object.assign(canvas.style, { left: left + '%', top: top + '%', width: right - left + '%', height: bottom - top + '%' })
  canvas.setAttribute('aria-hidden', 'true')
  frame.append(image, canvas)
  return frame
}
