package container

// The words of random names: temper and trade winds first, people of science and
// craft second.

import (
	"strings"
	"sync"
)

var adjectives = sync.OnceValue(func() []string {
	return strings.Fields(`able airy amber ample apt avid azure basic bold brave breezy bright brisk bubbly calm candid
	careful cheery chief civil clear clever cosy crisp curious dapper daring deft dewy diligent dreamy driven eager early
	earnest easy elated elegant epic exact expert fair famous fancy fearless festive fine firm fleet fluent fond frank free fresh
	friendly frosty gallant generous gentle giddy gifted glad gleaming golden graceful grand great handy happy hardy hearty
	helpful honest hopeful humble hungry ideal jolly jovial joyful keen kind lasting lively loyal lucid lucky magical mellow merry
	mighty mindful modest musing neat nimble noble novel open patient peaceful peppy placid plucky polite proud quick quiet radiant
	rapid ready regal relaxed robust rosy sage serene sharp shiny silent silver sincere sleek smart smooth snappy snug solid spry
	stable steady stellar stoic strong sturdy sunny super sure swift tender thrifty tidy trusty upbeat valiant vivid warm wise
	witty wry zealous zesty zippy`)
})

var surnames = sync.OnceValue(func() []string {
	return strings.Fields(`abel agnesi almeida alhazen ampere apgar archimedes aryabhata avicenna babbage banach banneker banzhaf
	bardeen bassi bell bernoulli bessel bhabha bohr boltzmann boole borlaug bose boyle brahe brahmagupta brown burnell
	cannon cantor carson cauchy cerf chandrasekhar chatelet chomsky church colden copernicus cori coulomb curie dalton darwin dedekind
	descartes dijkstra dirac doppler easley edison einstein elion engelbart eratosthenes erdos euclid euler faraday fermat fermi
	feynman fibonacci floyd fourier franklin fresnel galileo galois gauss germain gibbs goddard godel goeppert goodall gosling
	hadamard haibt hamilton hamming hawking heisenberg herschel hertz heyrovsky hilbert hodgkin hooke hopper hubble huygens hypatia ibnsina
	jackson jacobi jemison jennings johnson joliot joule kalam kapitza keller kepler khayyam khorana kirch knuth kovalevskaya
	lagrange lamarr lamport landau laplace lavoisier leakey leavitt legendre leibniz levi lichterman liskov lovelace lumiere lyell
	maclaurin margulis maxwell mayer mccarthy mcclintock mclean meitner mendel mendeleev merkle mestorf milner mirzakhani moore morse
	moser napier nash newton nightingale nobel noether noyce ohm oppenheimer pare pascal pasteur payne pearson perlman pike planck
	poincare poitras ptolemy pythagoras raman ramanujan rayleigh rhodes riemann ritchie robinson rontgen rosalind rubin rutherford sagan sammet
	sanderson shannon shockley simons sinoussi snyder somerville stallman steiner stonebraker swanson swartz swirles tesla tharp
	thompson torvalds tu turing varahamihira vaughan villani visvesvaraya volhard volta wescoff wiener wilbur wiles williams
	wing wirth wozniak wright wu yalow yonath zhukovsky`)
})
